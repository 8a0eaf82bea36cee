"""Convolutions of frozen weights on a CPU, their weights laid out once as oneDNN reads them.

Other convolutions lay theirs out at every call, which takes as long as the arithmetic where maps are small. These also
keep no input for their way back, since nobody asks for the gradient of the weights. The operators are torch's own, which
its compiler uses; they compute what its usual ones do.
"""

from typing import Any, cast

import torch
from torch import Tensor

ONE, NONE = (1, 1), (0, 0)
FEWEST = 2**19  # numbers; fewer are laid out in no time, and their maps are large


class PackedWeight:
    """Laid out for the last size of map that came: the layout may depend on it, and a wrong one is a hundred times slower."""

    def __init__(self, weight: Tensor, stride: int, *, turned: bool) -> None:
        """
        Args:
            weight: [Cout, Cin, 3, 3]; of turned ones, which go the way back of another, [Cin, Cout, 3, 3].
        """
        self.weight, self.stride, self.turned = weight, (stride, stride), turned
        self.packed: tuple[object, Tensor | None] = (None, None)  # for which size, and how

    def __call__(self, x: Tensor, padding: int) -> Tensor:
        """Like `conv2d`, or `conv_transpose2d`."""
        around = padding, padding
        packed = self.laid_out(x.shape, around)
        rest: tuple[Any, ...] = self.stride, ONE, 1, "none", [], ""
        y: Tensor
        if self.turned:
            y = torch.ops.mkldnn._convolution_transpose_pointwise(x, packed, None, around, NONE, *rest)
        else:
            y = torch.ops.mkldnn._convolution_pointwise(x, packed, None, around, *rest)
        return y

    def laid_out(self, shape: torch.Size, around: tuple[int, int]) -> Tensor:
        size = shape[2:], around
        known, packed = self.packed  # another thread may come with another size
        if known != size or packed is None:
            packed = self.lay_out(shape, around)
            self.packed = size, packed
        return packed

    def lay_out(self, shape: torch.Size, around: tuple[int, int]) -> Tensor:
        rest = self.stride, ONE, 1, list(shape)
        packed: Tensor
        if self.turned:
            packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(self.weight, around, NONE, *rest)
        else:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, around, *rest)
        return packed


class PackedConvolution:
    """[B, Cin, H, W] -> [B, Cout, H, W], of `up` layers [B, Cout, 2H + 1, 2W + 1]; 3x3, without bias."""

    def __init__(self, weight: Tensor, up: bool) -> None:
        """
        Args:
            weight: [Cout, Cin, 3, 3].
        """
        given, stride = (weight.transpose(0, 1), 2) if up else (weight, 1)
        self.forward = PackedWeight(given, stride, turned=up)
        self.backward = PackedWeight(given, stride, turned=not up)

    def __call__(self, x: Tensor, padding: int) -> Tensor:
        return cast(Tensor, Apply.apply(x, self, padding))  # type: ignore[no-untyped-call]  # torch's stubs lack it


class Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, convolution: PackedConvolution, padding: int) -> Tensor:
        ctx.convolution, ctx.padding = convolution, padding
        return convolution.forward(x, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.convolution.backward(gradient, ctx.padding), None, None


def can_pack(weight: Tensor) -> bool:
    """Whether it is worth it, and torch has these convolutions on this device and for this type."""
    if weight.device.type != "cpu" or weight.numel() < FEWEST or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
