"""Convolutions of frozen weights: they keep no input for their way back, since nobody asks for a gradient of the weights.

On a CPU large weights can be laid out once as oneDNN reads them; torch's usual operators do so at every call, which takes as
long as the arithmetic where maps are small. The operators are torch's own too, which its compiler uses.
"""

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ONE, NONE = (1, 1), (0, 0)
FEWEST = 2**19  # numbers; fewer are laid out in no time, and their maps are large
KEPT = 2  # layouts of a weight: a worker may make two steps beside each other


class Way(Protocol):
    """A convolution by certain weights, ahead or back."""

    def ahead(self, x: Tensor, padding: int) -> Tensor: ...

    def back(self, gradient: Tensor, shape: torch.Size, padding: int) -> Tensor:
        """The gradient of an input of that shape."""
        ...


class PackedWeight:
    """Laid out by size of map and number of threads, on which layouts depend: a wrong one is up to a hundred times slower."""

    def __init__(self, weight: Tensor, stride: int, *, turned: bool) -> None:
        """
        Args:
            weight: [Cout, Cin, 3, 3]; of turned ones, which go the way back of another, [Cin, Cout, 3, 3].
        """
        self.weight, self.stride, self.turned = weight, (stride, stride), turned
        self.packed: tuple[tuple[object, Tensor], ...] = ()  # for what, and how; the last ones that were new

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
        wanted = shape[2:], around, torch.get_num_threads()
        known = self.packed  # another thread may come with another size
        for one, packed in known:
            if one == wanted:
                return packed
        packed = self.lay_out(shape, around)
        self.packed = (wanted, packed), *known[: KEPT - 1]
        return packed

    def lay_out(self, shape: torch.Size, around: tuple[int, int]) -> Tensor:
        rest = self.stride, ONE, 1, list(shape)
        packed: Tensor
        if self.turned:
            packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(self.weight, around, NONE, *rest)
        else:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, around, *rest)
        return packed


class Packed:
    """Of a layer's weights [Cout, Cin, 3, 3]; `up` ones are transposed, of stride 2."""

    def __init__(self, weight: Tensor, up: bool) -> None:
        given, stride = (weight.transpose(0, 1), 2) if up else (weight, 1)
        self.forward = PackedWeight(given, stride, turned=up)
        self.backward = PackedWeight(given, stride, turned=not up)

    def ahead(self, x: Tensor, padding: int) -> Tensor:
        return self.forward(x, padding)

    def back(self, gradient: Tensor, shape: torch.Size, padding: int) -> Tensor:
        return self.backward(gradient, padding)


class Plain:
    """Like `conv2d`, or `conv_transpose2d` of stride 2; weight [Cout, Cin / groups, k, k], transposed [Cin, Cout, k, k]."""

    def __init__(self, weight: Tensor, *, transposed: bool = False, groups: int = 1) -> None:
        self.weight, self.transposed, self.groups = weight, transposed, groups
        self.stride = (2, 2) if transposed else ONE

    @classmethod
    def of(cls, weight: Tensor, up: bool) -> "Plain":
        """A layer's, [Cout, Cin, 3, 3]."""
        return cls(weight.transpose(0, 1), transposed=True) if up else cls(weight)

    def ahead(self, x: Tensor, padding: int) -> Tensor:
        return torch.convolution(x, self.weight, None, self.stride, (padding, padding), ONE, self.transposed, NONE, self.groups)

    def back(self, gradient: Tensor, shape: torch.Size, padding: int) -> Tensor:
        x = gradient.new_empty(1).expand(shape)  # only its shape counts
        found: Tensor = torch.ops.aten.convolution_backward(
            gradient, x, self.weight, None, self.stride, (padding, padding), ONE, self.transposed, NONE, self.groups,
            (True, False, False),
        )[0]  # fmt: skip
        return found


class Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, way: Way, padding: int) -> Tensor:
        ctx.way, ctx.shape, ctx.padding = way, x.shape, padding
        return way.ahead(x, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.way.back(gradient, ctx.shape, ctx.padding), None, None


def convolve(x: Tensor, way: Way, padding: int) -> Tensor:
    return cast(Tensor, Apply.apply(x, way, padding))  # type: ignore[no-untyped-call]  # torch's stubs lack it


def can_pack(weight: Tensor) -> bool:
    """Whether it is worth it, and torch has these convolutions on this device and for this type."""
    if weight.device.type != "cpu" or weight.numel() < FEWEST or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
