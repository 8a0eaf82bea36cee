"""Numbers and rules that the service and the engine share. Free of PyTorch, so that the API can read them."""

EARLY_ROWS = 6  # rows of w+; what they change reaches the image through two maps alone
EARLY_RESOLUTION = 32  # the block whose first layer makes one of the two maps; the RGB sum of the coarser blocks is the other


def default_feature_resolution(resolution: int) -> int:
    """Return the resolution of the block whose features are watched: 128, or half of a smaller image (pixels)."""
    return min(128, resolution // 2)


def has_early_mask(architecture: str | None, resolution: int, trainable_layers: int, feature_resolution: int) -> bool:
    """Return whether `mask_term="early"` holds all that such a drag can change; None is an architecture that is not known."""
    sums_rgb = architecture in (None, "skip") and resolution >= 2 * EARLY_RESOLUTION
    return sums_rgb and trainable_layers <= EARLY_ROWS and feature_resolution >= EARLY_RESOLUTION
