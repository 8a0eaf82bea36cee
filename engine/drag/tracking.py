"""Point tracking (Pan et al., section 3.3): find where the handles have gone by what they looked like at the start."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.drag.features import FeatureMap, read_grid
from engine.drag.options import REFERENCE_RESOLUTION, DragOptions


def tracking_pixels(options: DragOptions, resolution: int) -> int:
    """Return how far from its last position a handle is searched for, in pixels of an image of that resolution."""
    return max(1, round(options.tracking_radius * resolution / REFERENCE_RESOLUTION))


def track_points(
    maps: list[FeatureMap],
    reference: Tensor,
    handles: Tensor,
    resolution: int,
    *,
    radius: int,
    metric: Literal["l1", "l2"] = "l2",
    subpixel: bool = True,
) -> Tensor:
    """Return where each handle has gone: to the pixel nearby whose features are nearest to the handle's at the start.

    Args:
        maps: features around the handles.
        reference: [K, C], the handles' features at the start.
        handles: [K, 2] xy pixels, where the handles were last.
        resolution: of the image, pixels.
        radius: pixels around the handles that are searched.
        metric: of features; the paper says L1, its code L2.
        subpixel: refine the positions below the pixel.

    Returns:
        [K, 2] xy pixels.
    """
    side = 2 * radius + 3  # one more on each side, to refine winners at the window's edge
    center = handles.round().clamp(0, resolution - 1)  # [K, 2]
    pixels = center[:, None, None] + square_offsets(radius + 1, handles)  # [K, side, side, 2]
    found = read_grid(maps, pixels.diagonal(dim1=1, dim2=2).transpose(1, 2), resolution)  # [K, C, side, side]
    difference = found - reference[:, :, None, None]
    cost = difference.abs().sum(dim=1) if metric == "l1" else difference.square().sum(dim=1)  # [K, side, side]
    in_image = ((pixels >= 0) & (pixels <= resolution - 1)).all(dim=3)  # [K, side, side]
    allowed = F.pad(torch.ones(side - 2, side - 2, dtype=torch.bool, device=handles.device), (1, 1, 1, 1)) & in_image
    best = cost.masked_fill(~allowed, math.inf).flatten(1).argmin(dim=1)  # [K]
    point = torch.arange(len(handles), device=handles.device)
    row, column = best // side, best % side
    refined = pixels[point, row, column]  # [K, 2]
    if subpixel:
        refined = refined + parabola_vertex(cost, in_image, row, column)
    return refined


def square_offsets(radius: int, like: Tensor) -> Tensor:
    """Return all integer offsets (x, y) up to radius: [side, side, 2]."""
    span = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(span, span, indexing="xy"), dim=2)


def parabola_vertex(cost: Tensor, in_image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the offsets [K, 2] in (-0.5, 0.5) of the minima of parabolas through the winner and its neighbors, for each axis."""
    point = torch.arange(len(cost), device=cost.device)
    here = cost[point, row, column]
    shifts = []
    for down, across in ((0, 1), (1, 0)):
        before, after = cost[point, row - down, column - across], cost[point, row + down, column + across]
        curvature = before - 2 * here + after
        shift = 0.5 * (before - after) / curvature.clamp(min=1e-12)
        inner = in_image[point, row - down, column - across] & in_image[point, row + down, column + across]
        shifts.append(torch.where(inner & (curvature > 0), shift, torch.zeros_like(shift)).clamp(-0.5, 0.5))
    return torch.stack(shifts, dim=1)
