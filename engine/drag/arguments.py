"""Check a drag's arguments against its generator and against each other."""

import torch
from torch import Tensor

from engine.defaults import default_feature_resolution
from engine.drag.mask_term import check_early
from engine.drag.options import DragOptions
from engine.drag.solvers import SOLVERS
from engine.errors import InvalidEdit
from engine.networks.config import GeneratorConfig


def check_arguments(
    config: GeneratorConfig, w: Tensor, handles: Tensor, targets: Tensor, movable: Tensor | None, options: DragOptions
) -> None:
    """Raise InvalidEdit with the first argument that does not fit, its limit and its value."""
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
    check_options(config, options, masked=movable is not None)


def check_options(config: GeneratorConfig, options: DragOptions, *, masked: bool) -> None:
    """Raise InvalidEdit with the first option that does not fit the generator or the other options."""
    if not 1 <= options.trainable_layers <= config.num_ws:
        raise InvalidEdit(f"trainable_layers must be 1 to {config.num_ws}, got {options.trainable_layers}")
    if SOLVERS[options.solver].points_only and (masked or options.latent_weight > 0):
        raise InvalidEdit(f"solver {options.solver} goes by the points alone: without movable, with a latent_weight of 0")
    if masked and options.mask_term == "early":
        feature_resolution = options.feature_resolution or default_feature_resolution(config.resolution)
        check_early(config, options.trainable_layers, feature_resolution)
    if options.feature_resolution not in (None, *config.block_resolutions):
        raise InvalidEdit(f"feature_resolution must be one of {config.block_resolutions}, got {options.feature_resolution}")
