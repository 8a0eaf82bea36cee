"""How to drag, and what that means for a generator.

Radii are pixels of a 512-pixel image and scale with the model's resolution.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.drag.feature_pass import Watch, choose_watch
from engine.drag.gauss_newton import REFINED_PX, SLOPE_PX
from engine.drag.mask_term import EARLY_SIZE, check_early
from engine.errors import InvalidEdit
from engine.networks.frozen_synthesis import Precision
from engine.networks.stylegan2 import Generator

REFERENCE_RESOLUTION = 512  # radii are given at this image size
SLACK_PX = 4.0  # a step, the refinement of handles, and the pixels that are blended


@dataclass(frozen=True, kw_only=True)
class DragOptions:
    """How to drag. Symbols are the paper's (section 3.2)."""

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


def tracking_pixels(options: DragOptions, resolution: int) -> int:
    """How far from where a handle was it is looked for."""
    return max(1, round(options.tracking_radius * resolution / REFERENCE_RESOLUTION))


def reach_px(options: DragOptions, resolution: int) -> float:
    """How far from where a handle was features are read: it is found anew, then its disc is read, and that one step on.

    Gauss-Newton finds it once more by its disc, whose slopes it takes.
    """
    beyond = options.motion_radius + (REFINED_PX + SLOPE_PX if options.solver == "gauss-newton" else 0.0)
    return tracking_pixels(options, resolution) + beyond * resolution / REFERENCE_RESOLUTION + SLACK_PX


def feature_resolution(generator: Generator, options: DragOptions) -> int:
    """The block whose features are used: 128, or the largest of at most half the image for smaller models."""
    return options.feature_resolution or min(128, generator.config.resolution // 2)


def watched(generator: Generator, options: DragOptions, points: int, masked: bool) -> Watch:
    """The paper's mask needs the feature block whole; the early one the blocks before its layers."""
    until, resolution = feature_resolution(generator, options), generator.config.resolution
    reach = reach_px(options, resolution) * until / resolution
    if not masked:
        copies = points if options.solver == "gauss-newton" else 1
        return choose_watch(generator.config, until, options.context_blocks, reach, points, copies)
    if options.mask_term == "paper":
        return Watch(until, 0, until, reach)
    return choose_watch(generator.config, until, 0, reach, points, least=EARLY_SIZE // 2)


def check_arguments(
    generator: Generator, w: Tensor, handles: Tensor, targets: Tensor, movable: Tensor | None, options: DragOptions
) -> None:
    config = generator.config
    if w.shape != (1, config.num_ws, config.w_dim):
        raise InvalidEdit(f"w must be [1, {config.num_ws}, {config.w_dim}], got {list(w.shape)}")
    if handles.ndim != 2 or handles.shape[1] != 2 or handles.shape != targets.shape or len(handles) == 0:
        raise InvalidEdit(
            f"handles and targets must both be [K, 2] with K >= 1, got {list(handles.shape)} and {list(targets.shape)}"
        )
    for name, points in (("handles", handles), ("targets", targets)):
        if not ((points >= 0) & (points <= config.resolution - 1)).all():
            raise InvalidEdit(f"{name} must lie in the image, 0 to {config.resolution - 1} pixels, got {points.tolist()}")
    if movable is not None and (movable.dtype != torch.bool or movable.shape != (config.resolution, config.resolution)):
        raise InvalidEdit(f"movable must be bool [{config.resolution}, {config.resolution}]")
    if movable is not None and not movable.any():
        raise InvalidEdit("movable is False everywhere: nothing may change")
    check_options(generator, options, movable is not None)


def check_options(generator: Generator, options: DragOptions, masked: bool) -> None:
    config = generator.config
    if not 1 <= options.trainable_layers <= config.num_ws:
        raise InvalidEdit(f"trainable_layers must be 1 to {config.num_ws}, got {options.trainable_layers}")
    if options.solver == "gauss-newton" and (masked or options.latent_weight > 0):
        raise InvalidEdit("solver gauss-newton goes by the points alone: without movable, with a latent_weight of 0")
    if masked and options.mask_term == "early":
        check_early(config, options.trainable_layers, feature_resolution(generator, options))
    if options.feature_resolution not in (None, *config.block_resolutions):
        raise InvalidEdit(f"feature_resolution must be one of {config.block_resolutions}, got {options.feature_resolution}")
