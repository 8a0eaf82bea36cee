"""Point tracking (Pan et al., section 3.3): where the handles have gone, found by what they looked like at the start."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.drag.features import FeatureMap, read_grid


def track(
    maps: list[FeatureMap],
    reference: Tensor,
    handles: Tensor,
    resolution: int,
    *,
    radius: int,
    metric: Literal["l1", "l2"] = "l2",
    subpixel: bool = True,
) -> Tensor:
    """Where each handle has gone: the pixel nearby whose features are nearest to what the handle looked like.

    Args:
        maps: what is seen around the handles.
        reference: [K, C], the handles' features at the start.
        handles: [K, 2] xy pixels, where they were last.
        radius: pixels around them that are searched.
        metric: the paper says L1, its code L2.
        subpixel: refine below the pixel.

    Returns:
        [K, 2] xy pixels.
    """
    side = 2 * radius + 3  # one more on each side, to refine winners at the window's edge
    center = handles.round().clamp(0, resolution - 1)
    pixels = center[:, None, None] + square(radius + 1, handles)  # [K, side, side, 2]
    found = read_grid(maps, pixels.diagonal(dim1=1, dim2=2).transpose(1, 2), resolution)  # [K, C, side, side]
    difference = found - reference[:, :, None, None]
    cost = difference.abs().sum(dim=1) if metric == "l1" else difference.square().sum(dim=1)  # [K, side, side]
    in_image = ((pixels >= 0) & (pixels <= resolution - 1)).all(dim=3)
    allowed = F.pad(torch.ones(side - 2, side - 2, dtype=torch.bool, device=handles.device), (1, 1, 1, 1)) & in_image
    best = cost.masked_fill(~allowed, math.inf).flatten(1).argmin(dim=1)  # [K]
    point = torch.arange(len(handles), device=handles.device)
    row, column = best // side, best % side
    refined = pixels[point, row, column]
    if subpixel:
        refined = refined + parabola(cost, in_image, row, column)
    return refined


def square(radius: int, like: Tensor) -> Tensor:
    """Integer offsets (x, y) up to radius: [side, side, 2]."""
    span = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(span, span, indexing="xy"), dim=2)


def parabola(cost: Tensor, in_image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Offset [K, 2] in (-0.5, 0.5) of the minimum of a parabola through the winner and its neighbors, for each axis."""
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
