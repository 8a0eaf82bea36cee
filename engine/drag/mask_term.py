"""What holds the picture where a movable mask is False: a penalty on the change of features, each weighed by how fixed it is."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.errors import InvalidEdit
from engine.networks.config import GeneratorConfig
from engine.networks.stylegan2 import Modulations, SynthesisNetwork

EARLY_ROWS = 6  # of w+; what they change reaches the picture through two maps alone
EARLY_SIZE = 32  # the block whose first layer makes the one; the sum of the coarser blocks' RGB is the other
INFLUENCE = 3  # cells of that block's map on each side of one, which it has an influence on
EARLY_STRENGTH = 0.6  # with which equal weights hold equally well, measured on the demo model
USUAL_CHANGE = 0.08  # of a feature, counts alike in both metrics
DEAD_ZONE = 1e-3  # feature changes below this are rounding noise, whose gradient would be +-1


@dataclass(frozen=True)
class MaskTerm:
    """Which maps are held, and how much each of their cells."""

    synthesis: SynthesisNetwork
    shares: list[Tensor]  # [1, 1, r, r] for each map: the share of a cell's field that must stay, 0 to 1
    early: bool
    metric: Literal["l1", "l2"]
    weight: float

    def held(self, blocks: dict[int, Tensor], modulations: Modulations) -> list[Tensor]:
        """The maps of one pass: the last of the blocks (the paper), or the two through which the first rows of w+ act.

        Args:
            blocks: outputs [B, C, r, r] by resolution, coarse to fine.
        """
        if not self.early:
            return [blocks[max(blocks)]]
        coarse = {size: x for size, x in blocks.items() if size < EARLY_SIZE}
        first = self.synthesis.block(EARLY_SIZE).conv0(coarse[EARLY_SIZE // 2], modulations[f"b{EARLY_SIZE}.conv0"])
        return [first, self.synthesis.sum_rgb(coarse.items(), modulations)]

    def loss(self, now: list[Tensor], start: list[Tensor]) -> Tensor:
        """Mean change of each map where the picture must stay, summed and weighed."""
        penalty: Any = Squares if self.metric == "l2" else BeyondNoise
        pairs = zip(now, start, self.shares, strict=True)
        means: list[Tensor] = [penalty.apply((a - b).to(share.dtype), share) for a, b, share in pairs]
        return sum(means[1:], means[0]) * (self.weight * EARLY_STRENGTH if self.early else self.weight)


class BeyondNoise(torch.autograd.Function):
    """Mean over a map [B, C, r, r] of the change beyond rounding, times the share of its cell. Keeps one map, not three."""

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


class Squares(torch.autograd.Function):
    """Mean of the squares of the change, times the share of its cell."""

    @staticmethod
    def forward(ctx: Any, change: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(change, share)
        return change.square().div_(USUAL_CHANGE).mul_(share).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        change, share = ctx.saved_tensors
        return (change * 2).mul_(gradient / change.numel() * share / USUAL_CHANGE), None


def paper_shares(movable: Tensor, size: int, like: Tensor) -> list[Tensor]:
    """[R, R] bool, True may change -> [[1, 1, f, f]], the share of each cell of the feature block that must stay."""
    fixed = (~movable).to(like.device, like.dtype)[None, None]
    return [F.avg_pool2d(fixed, movable.shape[0] // size)]


def early_shares(movable: Tensor, like: Tensor) -> list[Tensor]:
    """The same of the two early maps, [1, 1, 32, 32] and [1, 1, 16, 16], for the field that each of their cells has."""
    [fixed] = paper_shares(movable, EARLY_SIZE, like)
    field = F.avg_pool2d(fixed, 2 * INFLUENCE + 1, stride=1, padding=INFLUENCE, count_include_pad=False)
    return [field, F.avg_pool2d(field, 2)]


def check_early(config: GeneratorConfig, trainable_layers: int, feature_resolution: int) -> None:
    """Raises InvalidEdit where it would miss something, for rows or networks that change the picture by other ways too."""
    if trainable_layers > EARLY_ROWS:
        raise InvalidEdit(
            f"mask_term early holds what the first {EARLY_ROWS} rows change, trainable_layers is {trainable_layers}"
        )
    if config.architecture != "skip" or config.resolution < 2 * EARLY_SIZE:
        wanted = f"a skip generator of at least {2 * EARLY_SIZE} px"
        raise InvalidEdit(f"mask_term early needs {wanted}, got {config.architecture} of {config.resolution} px")
    if feature_resolution < EARLY_SIZE:
        raise InvalidEdit(f"mask_term early needs a feature_resolution of at least {EARLY_SIZE}, got {feature_resolution}")
