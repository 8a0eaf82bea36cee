"""3x3 convolutions by frozen weights. No weight gets a gradient, so autograd keeps no input for the backward pass.

On a CPU large weights can be packed once into the layout that oneDNN reads. torch's usual operators pack them at every call,
which takes as long as the arithmetic where maps are small. The operators used here are the ones that torch's compiler uses.
"""

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ONES, ZEROS = (1, 1), (0, 0)  # dilation; output padding
MIN_PACKED_NUMEL = 2**19  # smaller weights are packed in no time, and their maps are large
MAX_PACKED_COPIES = 2  # of one weight: a worker may make two steps at the same time


class ConvKernel(Protocol):
    """A convolution by fixed weights, and the gradient of its input."""

    def forward(self, x: Tensor, padding: int) -> Tensor:
        """Convolve x [B, Cin, H, W]."""
        ...

    def backward(self, gradient: Tensor, input_shape: torch.Size, padding: int) -> Tensor:
        """Return the gradient of an input of the shape [B, Cin, H, W].

        Args:
            gradient: of the output, [B, Cout, H', W'].
        """
        ...


class PackedWeight:
    """One weight in the layout that oneDNN reads.

    The layout depends on the size of the map and on the number of threads; a convolution by the wrong one is up to a
    hundred times slower. So the weight is packed for each combination, and the last copies are kept.
    """

    def __init__(self, weight: Tensor, stride: int, *, transposed: bool) -> None:
        """Take the weight as it is; the first call packs it.

        Args:
            weight: [Cout, Cin, 3, 3]; of a transposed convolution [Cin, Cout, 3, 3].
            transposed: whether to convolve like `conv_transpose2d` instead of like `conv2d`.
        """
        self.weight = weight
        self.stride = stride, stride
        self.transposed = transposed
        self.copies: tuple[tuple[object, Tensor], ...] = ()  # (what it is packed for, packed weight), the newest first

    def convolve(self, x: Tensor, padding: int) -> Tensor:
        """Convolve x [B, C, H, W] like `conv2d` or `conv_transpose2d`."""
        paddings = padding, padding
        packed = self.packed_for(x.shape, paddings)
        rest: tuple[Any, ...] = self.stride, ONES, 1, "none", [], ""
        y: Tensor
        if self.transposed:
            y = torch.ops.mkldnn._convolution_transpose_pointwise(x, packed, None, paddings, ZEROS, *rest)
        else:
            y = torch.ops.mkldnn._convolution_pointwise(x, packed, None, paddings, *rest)
        return y

    def packed_for(self, shape: torch.Size, paddings: tuple[int, int]) -> Tensor:
        """Return the weight packed for inputs of the shape [B, C, H, W], packing it if no kept copy fits."""
        wanted = shape[2:], paddings, torch.get_num_threads()
        copies = self.copies  # read once: another thread may replace the tuple
        for packed_for, packed in copies:
            if packed_for == wanted:
                return packed
        packed = self.pack(shape, paddings)
        self.copies = (wanted, packed), *copies[: MAX_PACKED_COPIES - 1]
        return packed

    def pack(self, shape: torch.Size, paddings: tuple[int, int]) -> Tensor:
        """Pack the weight for inputs of the shape [B, C, H, W]."""
        rest = self.stride, ONES, 1, list(shape)
        packed: Tensor
        if self.transposed:
            packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(self.weight, paddings, ZEROS, *rest)
        else:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, paddings, *rest)
        return packed


class PackedConvKernel:
    """A convolution by packed weights on a CPU; the backward pass is the convolution of the opposite kind."""

    def __init__(self, weight: Tensor, up: bool) -> None:
        """Take a layer's weight.

        Args:
            weight: [Cout, Cin, 3, 3].
            up: whether the layer doubles the resolution, by a transposed convolution of stride 2.
        """
        laid, stride = (weight.transpose(0, 1), 2) if up else (weight, 1)
        self.forward_weight = PackedWeight(laid, stride, transposed=up)
        self.backward_weight = PackedWeight(laid, stride, transposed=not up)

    def forward(self, x: Tensor, padding: int) -> Tensor:
        """Convolve x [B, Cin, H, W]."""
        return self.forward_weight.convolve(x, padding)

    def backward(self, gradient: Tensor, input_shape: torch.Size, padding: int) -> Tensor:
        """Return the gradient of an input of the shape [B, Cin, H, W]."""
        return self.backward_weight.convolve(gradient, padding)


class PlainConvKernel:
    """A convolution by torch's usual operators, on any device and in any floating type."""

    def __init__(self, weight: Tensor, *, transposed: bool = False, groups: int = 1) -> None:
        """Take the weight as torch wants it.

        Args:
            weight: [Cout, Cin / groups, k, k] for `conv2d`, [Cin, Cout, k, k] for `conv_transpose2d`.
            transposed: whether to convolve like `conv_transpose2d` of stride 2.
        """
        self.weight = weight
        self.transposed = transposed
        self.groups = groups
        self.stride = (2, 2) if transposed else ONES

    @classmethod
    def of_layer(cls, weight: Tensor, up: bool) -> "PlainConvKernel":
        """Make the kernel of a layer's weight [Cout, Cin, 3, 3]; `up` layers double the resolution."""
        return cls(weight.transpose(0, 1), transposed=True) if up else cls(weight)

    def forward(self, x: Tensor, padding: int) -> Tensor:
        """Convolve x [B, Cin, H, W]."""
        return torch.convolution(x, self.weight, None, self.stride, (padding, padding), ONES, self.transposed, ZEROS, self.groups)

    def backward(self, gradient: Tensor, input_shape: torch.Size, padding: int) -> Tensor:
        """Return the gradient of an input of the shape [B, Cin, H, W]."""
        x = gradient.new_empty(1).expand(input_shape)  # the operator reads its shape alone
        x_gradient: Tensor = torch.ops.aten.convolution_backward(
            gradient, x, self.weight, None, self.stride, (padding, padding), ONES, self.transposed, ZEROS, self.groups,
            (True, False, False),
        )[0]  # fmt: skip
        return x_gradient


class FrozenConvolution(torch.autograd.Function):
    """The autograd function of a ConvKernel: it keeps the shape of the input, not the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: ConvKernel, padding: int) -> Tensor:
        """Convolve x [B, Cin, H, W]."""
        ctx.kernel, ctx.input_shape, ctx.padding = kernel, x.shape, padding
        return kernel.forward(x, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x; kernel and padding have none."""
        return ctx.kernel.backward(gradient, ctx.input_shape, ctx.padding), None, None


def convolve(x: Tensor, kernel: ConvKernel, padding: int) -> Tensor:
    """Convolve x [B, Cin, H, W] by frozen weights; x gets a gradient, the weights get none."""
    return cast(Tensor, FrozenConvolution.apply(x, kernel, padding))  # type: ignore[no-untyped-call]  # torch's stubs lack it


def can_pack(weight: Tensor) -> bool:
    """Tell whether packing a weight pays, and torch has the packed convolutions on its device and for its type."""
    if weight.device.type != "cpu" or weight.numel() < MIN_PACKED_NUMEL:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's stubs lack it
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
