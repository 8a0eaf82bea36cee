"""The mask term: a penalty on the change of features, which keeps the image where the movable mask is False.

Each cell of a held map counts by its fixed share: the share of its field in the image that must stay (Pan et al., section 3.2).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.defaults import EARLY_RESOLUTION, EARLY_ROWS
from engine.errors import InvalidEdit
from engine.networks.config import GeneratorConfig
from engine.networks.stylegan2 import Modulations, SynthesisNetwork

INFLUENCE = 3  # cells of the early map on each side of a cell that the cell has an influence on
EARLY_STRENGTH = 0.6  # makes equal weights hold equally well in both terms, measured on the demo model
USUAL_CHANGE = 0.08  # change of a feature that counts alike in both metrics
DEAD_ZONE = 1e-3  # feature changes below this are rounding noise, whose gradient would be +-1


@dataclass(frozen=True)
class MaskTerm:
    """Which maps are held, and how strongly each of their cells."""

    network: SynthesisNetwork
    shares: list[Tensor]  # [1, 1, r, r] for each held map: the share of a cell's field that must stay, 0 to 1
    early: bool  # hold the two maps through which the first rows of w+ act, instead of the feature block
    metric: Literal["l1", "l2"]
    weight: float  # lambda

    def held_maps(self, blocks: dict[int, Tensor], modulations: Modulations) -> list[Tensor]:
        """Return the maps [B, C, r, r] whose change is penalized: the feature block (the paper), or the two early maps.

        Args:
            blocks: outputs [B, C, r, r] by resolution, coarse to fine.
        """
        if not self.early:
            return [blocks[max(blocks)]]
        coarse = {size: x for size, x in blocks.items() if size < EARLY_RESOLUTION}
        first = self.network.block(EARLY_RESOLUTION).conv0(
            coarse[EARLY_RESOLUTION // 2], modulations[f"b{EARLY_RESOLUTION}.conv0"]
        )
        return [first, self.network.sum_rgb(coarse.items(), modulations)]

    def loss(self, now: list[Tensor], start: list[Tensor]) -> Tensor:
        """Return the weighted sum over the maps of their mean change where the image must stay, a scalar."""
        penalty: Any = SquaredChange if self.metric == "l2" else AbsoluteChange
        pairs = zip(now, start, self.shares, strict=True)
        means: list[Tensor] = [penalty.apply((a - b).to(share.dtype), share) for a, b, share in pairs]
        return sum(means[1:], means[0]) * (self.weight * EARLY_STRENGTH if self.early else self.weight)


class AbsoluteChange(torch.autograd.Function):
    """The mean over a map [B, C, r, r] of the change beyond rounding, times the share of its cell. Keeps one map, not three."""

    @staticmethod
    def forward(ctx: Any, change: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(change, share)
        return change.abs().sub_(DEAD_ZONE).relu_().mul_(share).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        change, share = ctx.saved_tensors
        beyond = change.abs().sub_(DEAD_ZONE) > 0
        return change.sign().mul_(beyond).mul_(gradient / change.numel() * share), None


class SquaredChange(torch.autograd.Function):
    """The mean of the squares of the change, times the share of its cell."""

    @staticmethod
    def forward(ctx: Any, change: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(change, share)
        return change.square().div_(USUAL_CHANGE).mul_(share).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        change, share = ctx.saved_tensors
        return (change * 2).mul_(gradient / change.numel() * share / USUAL_CHANGE), None


def feature_block_shares(movable: Tensor, size: int, like: Tensor) -> list[Tensor]:
    """Return the share of each cell of the feature block that must stay.

    Args:
        movable: [R, R] bool, True where the image may change.
        size: f, cells of the feature block.
        like: a tensor of the device and type that are wanted.

    Returns:
        One tensor [1, 1, f, f].
    """
    fixed = (~movable).to(like.device, like.dtype)[None, None]
    return [F.avg_pool2d(fixed, movable.shape[0] // size)]


def early_shares(movable: Tensor, like: Tensor) -> list[Tensor]:
    """Return the shares of the two early maps, [1, 1, 32, 32] and [1, 1, 16, 16], for the field that each of their cells has."""
    [fixed] = feature_block_shares(movable, EARLY_RESOLUTION, like)
    field = F.avg_pool2d(fixed, 2 * INFLUENCE + 1, stride=1, padding=INFLUENCE, count_include_pad=False)
    return [field, F.avg_pool2d(field, 2)]


def check_early(config: GeneratorConfig, trainable_layers: int, feature_resolution: int) -> None:
    """Raise InvalidEdit where the early term would miss something: rows or networks that change the image in other ways too."""
    if trainable_layers > EARLY_ROWS:
        raise InvalidEdit(
            f"mask_term early holds what the first {EARLY_ROWS} rows change, trainable_layers is {trainable_layers}"
        )
    if config.architecture != "skip" or config.resolution < 2 * EARLY_RESOLUTION:
        wanted = f"a skip generator of at least {2 * EARLY_RESOLUTION} px"
        raise InvalidEdit(f"mask_term early needs {wanted}, got {config.architecture} of {config.resolution} px")
    if feature_resolution < EARLY_RESOLUTION:
        raise InvalidEdit(f"mask_term early needs a feature_resolution of at least {EARLY_RESOLUTION}, got {feature_resolution}")
