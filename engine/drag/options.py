"""Options of a drag. Free of PyTorch, so that the API can read them.

Radii are pixels of a 512-pixel image and scale with the model's resolution.
"""

from dataclasses import dataclass
from typing import Literal

from engine.networks.config import Precision

REFERENCE_RESOLUTION = 512  # pixels of the image for which radii are given


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
    overstep: bool = True  # every step of a handle is a whole pixel; else at most what remains, and who arrived is held
    solver: Literal["adam", "gauss-newton"] = "adam"  # what takes steps; the other knows no rate, no step of one pixel, no mask
