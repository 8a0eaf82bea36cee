"""Options of a drag, and the presets that choose them. Free of PyTorch, so that the API can read them.

Radii are pixels of a 512-pixel image and scale with the model's resolution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from engine.networks.config import Precision

REFERENCE_RESOLUTION = 512  # pixels of the image for which radii are given
MANY_POINTS = 16  # from here on the default preset drags in w instead of w+


@dataclass(frozen=True, kw_only=True)
class DragOptions:
    """How to drag. Symbols are those of the paper (section 3.2)."""

    max_iterations: int = 200
    learning_rate: float = 0.002  # of Adam
    mask_weight: float = 20.0  # lambda
    motion_radius: float = 3.0  # r1, pixels at 512
    tracking_radius: float = 12.0  # r2, pixels at 512
    latent_space: str = "w+"  # w+: each row by itself; w: all alike; pca:K: alike, along the K principal directions of w
    trainable_layers: int = 6  # the first rows of w+; the others keep their values
    feature_resolution: int | None = None  # block to watch; None: 128, or the largest of at most half the image
    stop_distance: float = 1.0  # d, pixels of the image at any resolution
    latent_weight: float = 0.0  # of the mean change of w
    tracking_metric: Literal["l1", "l2"] = "l2"  # the paper says L1, its code L2
    mask_term: Literal["paper", "early"] = "paper"  # what a mask holds: the feature block, or all that the first rows change
    mask_metric: Literal["l1", "l2"] = "l1"  # of the change where the picture must stay; l2 forbids large ones, allows small
    subpixel: bool = True  # refine tracked handles below the pixel
    anchor_distance: float = 0.0  # pixels at 512: nearer to its target a point is pulled by what it looked like at the start
    context_blocks: int = 0  # coarser blocks watched beside the feature block, where no mask is given
    precision: Precision = "float32"  # of the convolutions; bfloat16 is twice as fast where it is native
    overstep: bool = True  # every step of a handle is a whole pixel; else at most what remains, and points that arrived are held
    # what takes the steps; gauss-newton uses neither learning_rate nor overstep, and takes no mask
    solver: Literal["adam", "gauss-newton"] = "adam"


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
