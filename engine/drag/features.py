"""Read feature maps at points of the image.

A block's output has its native size f; pixel x of the R-pixel image is feature coordinate (x + 0.5) f / R - 0.5. Points
are (x, y) in pixels of the image, pixel centers at integers; beyond the border the border's features count. At integer
pixels the native map is read bilinearly. Between integer pixels the four neighboring pixels are blended, as on a bilinear map
of the image's size: reading the native map there directly would turn the gradient by up to 15 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureMap:
    """A block's output, whole or in a window around each of K points."""

    values: Tensor  # [K or B, C, n, n]
    corner: Tensor  # [K or 1, 2] integers, the (x, y) cell of a window's first value; may lie outside the map
    size: int  # f, cells of the whole map
    owner: Tensor | None = None  # [K], which of B maps each point is on; None: each point has a map of its own, or all share one

    @classmethod
    def whole(cls, values: Tensor, owner: Tensor | None = None) -> "FeatureMap":
        """Return the map of a block's output [B, C, f, f]."""
        return cls(values, values.new_zeros(1, 2, dtype=torch.long), values.shape[-1], owner)

    def of_points(self) -> Tensor:
        """Return the values of each point, [K or 1, C, n, n]."""
        return self.values if self.owner is None else self.values.index_select(0, self.owner)

    def detach(self) -> "FeatureMap":
        return replace(self, values=self.values.detach())

    def weights(self, points: Tensor, resolution: int) -> Tensor:
        """Return how much each column and each row of a window counts at points [K, P, 2]: [K, P, 2, n]."""
        before = points.floor()
        share = (points - before)[..., None]
        here, next_one = self.bilinear(torch.stack([before, before + 1]), resolution)
        weights: Tensor = here * (1 - share) + next_one * share
        return weights

    def bilinear(self, pixels: Tensor, resolution: int) -> Tensor:
        """Return the weights at integer pixels [..., K, P, 2]: the two nearest cells count, each the more the nearer it is."""
        cells = ((pixels.clamp(0, resolution - 1) + 0.5) * (self.size / resolution) - 0.5).clamp(0, self.size - 1)
        places = torch.arange(self.values.shape[-1], device=pixels.device) + self.corner[..., None]  # [K or 1, 2, n]
        weights: Tensor = (1 - (cells[..., None] - places[:, None]).abs()).clamp(min=0)
        return weights


def read_features(maps: Sequence[FeatureMap], points: Tensor, resolution: int) -> Tensor:
    """Return the features of all maps at points [K, P, 2]: [K, P, sum of C]."""
    found = []
    for each in maps:
        x, y = each.weights(points, resolution).unbind(dim=2)
        weights = y[..., :, None] * x[..., None, :]  # [K, P, n, n]
        found.append(weights.flatten(2) @ each.of_points().to(weights.dtype).flatten(2).transpose(1, 2))
    return torch.cat(found, dim=2)


def read_grid(maps: Sequence[FeatureMap], ticks: Tensor, resolution: int) -> Tensor:
    """Return the features of all maps where S columns and S rows of each point cross.

    Args:
        ticks: [K, S, 2], x of the columns and y of the rows, pixels.

    Returns:
        [K, sum of C, S (y), S (x)].
    """
    found = []
    for each in maps:
        across, down = each.weights(ticks, resolution).unbind(dim=2)
        found.append(down[:, None] @ each.of_points().to(down.dtype) @ across[:, None].transpose(2, 3))
    return torch.cat(found, dim=1)


def disc_offsets(radius: float, scale: float, like: Tensor) -> Tensor:
    """Return the integer offsets nearer than radius, times scale: [P, 2] pixels."""
    span = torch.arange(-int(radius), int(radius) + 1, device=like.device, dtype=like.dtype)
    offsets = torch.cartesian_prod(span, span)
    return offsets[offsets.norm(dim=1) < radius] * scale
