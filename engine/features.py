"""Reading feature maps at points of the image.

A block's output has its native size f; pixel x of the R-pixel image is feature coordinate (x + 0.5) f / R - 0.5. Points
are (x, y) in pixels of the image, pixel centers at integers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(maps: Sequence[Tensor], points: Tensor, resolution: int) -> Tensor:
    """Features of all maps at image points, as bilinear image-size maps would give them.

    At integer pixels the native map is read bilinearly; between them the four neighboring pixels are blended. Reading
    the native map there directly would turn the gradient by up to 15 %.

    Args:
        maps: each [1, C, f, f], of any f.
        points: [N, 2] xy pixels; beyond the border the border's features count.
        resolution: R, the image's size in pixels.

    Returns:
        [N, sum of C]
    """
    corner = points.floor()
    fraction = points - corner  # [N, 2]
    steps = points.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    pixels = corner[:, None] + steps  # [N, 4, 2]
    weights = torch.where(steps == 1, fraction[:, None], 1 - fraction[:, None]).prod(dim=2)  # [N, 4]
    return (sample_pixels(maps, pixels.clamp(0, resolution - 1), resolution) * weights[:, :, None]).sum(dim=1)


def sample_pixels(maps: Sequence[Tensor], pixels: Tensor, resolution: int) -> Tensor:
    """Features at integer image pixels [..., 2], each native map read bilinearly: [..., sum of C]."""
    grid = (2 * pixels + 1) / resolution - 1  # pixel x is (x + 0.5) f / R - 0.5 on the map
    grid = grid.reshape(1, 1, -1, 2).to(maps[0].dtype)
    read = [F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].t() for x in maps]
    values = torch.cat(read, dim=1)
    return values.reshape(*pixels.shape[:-1], values.shape[1])


def disc(radius: float, scale: float, like: Tensor) -> Tensor:
    """Integer offsets nearer than radius, times scale: [P, 2] pixels."""
    span = torch.arange(-int(radius), int(radius) + 1, device=like.device, dtype=like.dtype)
    offsets = torch.cartesian_prod(span, span)
    return offsets[offsets.norm(dim=1) < radius] * scale
