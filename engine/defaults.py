"""Numbers and rules that the service and the engine share. Free of PyTorch, so that the API can read them.

Radii and distances of options are pixels of a 512-pixel image, unless an option says otherwise.
"""

from collections.abc import Callable
from typing import Any

from engine.drag.options import DragOptions

EARLY_ROWS = 6  # rows of w+; what they change reaches the image through two maps alone
EARLY_RESOLUTION = 32  # the block whose first layer makes one of the two maps; the RGB sum of the coarser blocks is the other
MANY_POINTS = 16  # from here on the default preset drags in w instead of w+


def default_feature_resolution(resolution: int) -> int:
    """Return the resolution of the block whose features are watched: 128, or half of a smaller image (pixels)."""
    return min(128, resolution // 2)


def has_early_mask(architecture: str | None, resolution: int, trainable_layers: int, feature_resolution: int) -> bool:
    """Return whether `mask_term="early"` holds all that such a drag can change; None is an architecture that is not known."""
    sums_rgb = architecture in (None, "skip") and resolution >= 2 * EARLY_RESOLUTION
    return sums_rgb and trainable_layers <= EARLY_ROWS and feature_resolution >= EARLY_RESOLUTION


def default_preset(points: int, masked: bool) -> dict[str, Any]:
    """Return the options of the preset `default`, which `dragqueue eval choices` found (docs/quality.md).

    A single point that no mask holds is pulled by a larger disc and anchored from farther away. Many points describe a whole
    image: the rows of w+ then move as one, wrong points outweigh less, and no anchor is needed.
    """
    single = points == 1 and not masked
    anchored = 12.0 if points < MANY_POINTS else 0.0
    return {
        "motion_radius": 12.0 if single else 3.0,
        "anchor_distance": 24.0 if single else anchored,
        "latent_space": "w" if points >= MANY_POINTS else "w+",
        "overstep": False,
        "context_blocks": 2,
        "mask_metric": "l2",
    }


def fast_preset(points: int, masked: bool) -> dict[str, Any]:
    """Return the options of the preset `fast`: bfloat16, and Gauss-Newton steps where no mask asks for a gradient."""
    gauss_newton = {"solver": "gauss-newton", "motion_radius": 12.0, "anchor_distance": 12.0}
    in_bfloat16 = {"precision": "bfloat16", "mask_term": "early"}
    return default_preset(points, masked) | in_bfloat16 | ({} if masked else gauss_newton)


def paper_preset(points: int, masked: bool) -> dict[str, Any]:
    """Return the options of the preset `paper`: whole pixels, L1, up to 300 iterations, 1 px for at most five points, else 2."""
    stop_distance = 1.0 if points <= 5 else 2.0
    return {"max_iterations": 300, "stop_distance": stop_distance, "subpixel": False, "tracking_metric": "l1"}


PRESETS: dict[str, Callable[[int, bool], dict[str, Any]]] = {
    "default": default_preset,
    "fast": fast_preset,
    "paper": paper_preset,
}


def preset_options(preset: str, points: int, masked: bool) -> DragOptions:
    """Return what a preset chooses for a drag.

    Args:
        preset: default, fast or paper.
        points: number of handle points.
        masked: whether a movable mask is given.
    """
    return DragOptions(**PRESETS[preset](points, masked))
