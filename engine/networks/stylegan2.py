"""The StyleGAN2 generator in plain PyTorch: mapping network and synthesis network.

Layers and parameters have the names of NVIDIA's published networks, so a converted checkpoint keeps its keys.
Images are float [B, 3, R, R] in about [-1, 1]; latents are w+ [B, L, D], one row for each modulated layer.
Shapes: B batch, C channels, H W height and width, R resolution, L layers (num_ws), D width of w.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.networks.config import GeneratorConfig
from engine.networks.conv_kernels import ConvKernel, PlainConvKernel, convolve

SQRT2 = math.sqrt(2)
SQRT_HALF = math.sqrt(0.5)
NoiseMode = Literal["const", "none"]


class Modulation(NamedTuple):
    """The factors by which w changes one convolution: of its input channels, and of its output channels."""

    scale: Tensor  # [B, Cin]
    demodulation: Tensor | None  # [B, Cout]; None for ToRGB

    def select(self, indices: Tensor) -> "Modulation":
        """Return the factors of K samples of the batch.

        Args:
            indices: int [K], each from 0 to B - 1; one may occur several times.
        """
        demodulation = None if self.demodulation is None else self.demodulation.index_select(0, indices)
        return Modulation(self.scale.index_select(0, indices), demodulation)


class Style(NamedTuple):
    """What turns w into the modulation of one layer: the affine transform, and the energy of the layer's weights."""

    weight: Tensor  # [D, Cin]
    bias: Tensor  # [Cin]
    energy: Tensor | None  # [Cin, Cout], the sum of each kernel's squared weights; None for ToRGB

    def modulation(self, w: Tensor) -> Modulation:
        """Return the modulation by w [B, D]."""
        scale = torch.addmm(self.bias, w, self.weight)  # [B, Cin]
        if self.energy is None:
            return Modulation(scale, None)
        variance = scale.square() @ self.energy  # [B, Cout], of each output channel
        return Modulation(scale, (variance + 1e-8).rsqrt())


class FullyConnectedLayer(nn.Module):
    """Linear layer with run-time scaling of weights ("equalized learning rate")."""

    def __init__(self, in_features: int, out_features: int, *, lr_multiplier: float = 1.0, bias_init: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], bias_init))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, inputs] to [B, outputs]."""
        weight, bias = self.scaled()
        return F.linear(x, weight, bias)

    def scaled(self) -> tuple[Tensor, Tensor]:
        """Return the weight [outputs, inputs] and the bias [outputs] with their gains applied."""
        return self.weight * self.weight_gain, self.bias * self.bias_gain


class MappingNetwork(nn.Module):
    """The network from z [B, Dz] to w [B, D]; of conditional generators it takes a class label too."""

    w_avg: Tensor  # [D], the mean of w over z

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.num_layers = config.mapping_layers
        self.c_dim = config.c_dim
        inputs = config.z_dim
        if config.c_dim > 0:
            self.embed = FullyConnectedLayer(config.c_dim, config.w_dim)
            inputs += config.w_dim
        widths = [inputs] + [config.w_dim] * config.mapping_layers
        for i in range(config.mapping_layers):
            self.add_module(f"fc{i}", FullyConnectedLayer(widths[i], widths[i + 1], lr_multiplier=0.01))
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map z to w.

        Args:
            z: [B, Dz], normally distributed.
            label: one-hot [B, c_dim]; for conditional generators, and for them alone.
        """
        x = normalize(z)  # [B, Dz]
        if self.c_dim > 0:
            if label is None:
                raise ValueError(f"a conditional generator needs a label of {self.c_dim} classes")
            embedded = normalize(self.embed(label))  # [B, D]
            x = torch.cat([x, embedded], dim=1)  # [B, Dz + D]
        for i in range(self.num_layers):
            x = self.get_submodule(f"fc{i}")(x)  # [B, D]
            x = F.leaky_relu(x, 0.2) * SQRT2
        return x

    def truncate(self, w: Tensor, truncation_psi: float) -> Tensor:
        """Pull w [B, D] towards its mean.

        Args:
            truncation_psi: 1 leaves w as it is, 0 gives the mean.
        """
        return self.w_avg + truncation_psi * (w - self.w_avg)


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias and leaky ReLU; with `up` it doubles the resolution."""

    noise_const: Tensor  # [R, R]
    resample_filter: Tensor  # [4, 4], sums to 1

    def __init__(self, config: GeneratorConfig, in_channels: int, resolution: int, *, up: bool = False) -> None:
        super().__init__()
        out_channels = config.channels(resolution)
        self.up = up
        self.conv_clamp = config.conv_clamp
        self.affine = FullyConnectedLayer(config.w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_kernel: ConvKernel | None = None  # for a frozen weight; None: torch's operators
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        if up:
            self.register_buffer("resample_filter", binomial_filter())

    def use_kernel(self, kernel: ConvKernel | None) -> None:
        """Convolve by a kernel of the layer's weight, which must not change any more; None: by torch's operators."""
        self.conv_kernel = kernel

    def style(self) -> Style:
        """Return the transform from w to this layer's modulation."""
        weight, bias = self.affine.scaled()
        energy = self.weight.to(bias.dtype).square().sum(dim=(2, 3))  # [Cout, Cin]
        return Style(weight.t(), bias, energy.t())

    def forward(self, x: Tensor, modulation: Modulation, noise_mode: NoiseMode = "const", gain: float = 1.0) -> Tensor:
        """Map x [B, Cin, H, W] to [B, Cout, H, W], with `up` to [B, Cout, 2H, 2W].

        Args:
            gain: multiplies the activations and their clamp.
        """
        x = self.convolve(scale_channels(x, modulation.scale), padding=1)  # [B, Cout, H, W], with `up` [B, Cout, 2H, 2W]
        noise = self.noise_const if noise_mode == "const" else None  # [R, R]
        return self.activate(x, modulation, noise, gain)

    def convolve(self, x: Tensor, padding: Literal[0, 1]) -> Tensor:
        """Convolve x [B, Cin, H, W], already scaled, to [B, Cout, H, W], with `up` to [B, Cout, 2H, 2W].

        Args:
            padding: 1 keeps the border; 0 leaves out the cells that depend on what is beyond it: the result has
                2 rows and 2 columns less, with `up` 4.
        """
        if not self.up:
            return self.convolve_weight(x, padding)  # [B, Cout, H, W], without padding [B, Cout, H - 2, W - 2]
        x = self.convolve_weight(x, 0)  # [B, Cout, 2H + 1, 2W + 1]
        if padding == 0:
            x = x[..., 1:-1, 1:-1]  # [B, Cout, 2H - 1, 2W - 1]
        return self.blur(x, padding)  # [B, Cout, 2H, 2W], without padding [B, Cout, 2H - 4, 2W - 4]

    def convolve_weight(self, x: Tensor, padding: int) -> Tensor:
        """Convolve x [B, Cin, H, W] by the weight alone; with `up` by its transpose, of stride 2 and without padding."""
        if self.conv_kernel is not None:
            return convolve(x, self.conv_kernel, padding)
        if self.up:
            return F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)  # [B, Cout, 2H + 1, 2W + 1]
        return F.conv2d(x, self.weight, padding=padding)  # [B, Cout, H, W]

    def blur(self, x: Tensor, padding: int) -> Tensor:
        """Low-pass filter x [B, C, H, W], which a transposed convolution has made of cells with zeros between them.

        Args:
            padding: with 1 the result has one row and one column less, with 0 three.
        """
        channels = x.shape[1]
        kernel = (self.resample_filter * 4).to(x.dtype).expand(channels, 1, 4, 4)
        if self.conv_kernel is not None:
            return convolve(x, PlainConvKernel(kernel, groups=channels), padding)
        return F.conv2d(x, kernel, padding=padding, groups=channels)

    def activate(self, x: Tensor, modulation: Modulation, noise: Tensor | None, gain: float = 1.0) -> Tensor:
        """Demodulate x [B, C, H, W], add noise and bias, apply leaky ReLU and clamp.

        Args:
            noise: [H, W] or [B, H, W]; None adds none.
            gain: multiplies the activations and their clamp.
        """
        assert modulation.demodulation is not None
        total_gain = gain * SQRT2  # applied before the leaky ReLU instead of after it: to factors that are small tensors
        x = scale_channels(x, modulation.demodulation * total_gain)  # [B, C, H, W]
        x = x.add_(self.bias_and_noise(noise, total_gain).to(x.dtype))
        x = F.leaky_relu_(x, 0.2)  # in place: autograd keeps one map less for the backward pass
        return x if self.conv_clamp is None else x.clamp(-self.conv_clamp * gain, self.conv_clamp * gain)

    def bias_and_noise(self, noise: Tensor | None, gain: float) -> Tensor:
        """Return the sum to add to every cell: [C, 1, 1], with noise [H, W] or [B, H, W] the shape [..., C, H, W]."""
        if noise is None:
            return (self.bias * gain)[:, None, None]  # [C, 1, 1]
        scaled_noise = (noise * self.noise_strength)[..., None]  # [..., H, W, 1]
        total = self.bias + scaled_noise  # [..., H, W, C], channels last as the maps: ten times as fast to add
        return total.mul_(gain).movedim(-1, -3)  # [..., C, H, W]


class SkipLayer(nn.Module):
    """The residual branch of a "resnet" block: 1x1 convolution and doubled resolution, without bias or activation."""

    resample_filter: Tensor  # [4, 4]

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.register_buffer("resample_filter", binomial_filter())

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, C', 2H, 2W]."""
        x = F.conv2d(x, self.weight * self.weight_gain)  # [B, C', H, W]
        return upsample(x, self.resample_filter)  # [B, C', 2H, 2W]


class ToRGBLayer(nn.Module):
    """Modulated 1x1 convolution to three channels, without demodulation or activation."""

    def __init__(self, config: GeneratorConfig, resolution: int) -> None:
        super().__init__()
        channels = config.channels(resolution)
        self.conv_clamp = config.conv_clamp
        self.affine = FullyConnectedLayer(config.w_dim, channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(3, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.weight_gain = 1 / math.sqrt(channels)

    def style(self) -> Style:
        """Return the transform from w to this layer's modulation, which includes the gain of its weight."""
        weight, bias = self.affine.scaled()
        return Style(weight.t() * self.weight_gain, bias * self.weight_gain, None)

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        """Map x [B, C, H, W] to colors [B, 3, H, W]."""
        x = scale_channels(x, modulation.scale)  # [B, C, H, W]
        x = F.conv2d(x, self.weight)  # [B, 3, H, W]
        x = x.to(self.bias.dtype) + self.bias[:, None, None]
        return x if self.conv_clamp is None else x.clamp(-self.conv_clamp, self.conv_clamp)


class SynthesisBlock(nn.Module):
    """The layers of one resolution: conv0 doubles it, conv1 keeps it, ToRGB makes colors; at 4x4 a constant replaces conv0."""

    resample_filter: Tensor  # [4, 4]

    def __init__(self, config: GeneratorConfig, resolution: int) -> None:
        super().__init__()
        channels = config.channels(resolution)
        if resolution == 4:
            self.const = nn.Parameter(torch.randn(channels, 4, 4))
        else:
            self.conv0 = SynthesisLayer(config, config.channels(resolution // 2), resolution, up=True)
            self.register_buffer("resample_filter", binomial_filter())
        self.conv1 = SynthesisLayer(config, channels, resolution)
        self.torgb = ToRGBLayer(config, resolution) if config.has_rgb(resolution) else None
        self.skip = SkipLayer(config.channels(resolution // 2), channels) if config.has_skip(resolution) else None

    def forward(self, x: Tensor, conv0: Modulation | None, conv1: Modulation, noise_mode: NoiseMode) -> Tensor:
        """Map x [B, C, H, W] to [B, C', 2H, 2W]; the first block keeps its 4x4.

        Args:
            conv0: the modulation of the first layer; None in the first block, which has none.
        """
        y = x if conv0 is None else self.conv0(x, conv0, noise_mode)  # [B, C', 2H, 2W]
        if self.skip is None:
            return cast(Tensor, self.conv1(y, conv1, noise_mode))  # [B, C', 2H, 2W]
        branch = self.skip(x) * SQRT_HALF  # [B, C', 2H, 2W]
        return cast(Tensor, branch + self.conv1(y, conv1, noise_mode, gain=SQRT_HALF))


class ModulatedLayer(NamedTuple):
    """A convolution with its place in the network."""

    name: str  # such as b8.conv0
    row: int  # of w+, which modulates it
    layer: SynthesisLayer | ToRGBLayer


Modulations = dict[str, Modulation]  # by layer name


def modulate(layers: Sequence[ModulatedLayer], ws: Tensor, styles: Mapping[str, Style] | None = None) -> Modulations:
    """Return the modulations of layers by w+ [B, L, D].

    Args:
        styles: the layers' styles by name, which do not change while layers are frozen; None computes them.
    """
    styles = styles or {name: layer.style() for name, _, layer in layers}
    return {name: styles[name].modulation(ws[:, row]) for name, row, _ in layers}


class SynthesisNetwork(nn.Module):
    """The network from w+ [B, L, D] to images [B, 3, R, R], summed from the ToRGB layers of the blocks that have one."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.block_resolutions = config.block_resolutions
        for resolution in self.block_resolutions:
            self.add_module(f"b{resolution}", SynthesisBlock(config, resolution))

    def block(self, resolution: int) -> SynthesisBlock:
        """Return the block of a resolution."""
        return cast(SynthesisBlock, getattr(self, f"b{resolution}"))

    def layers(self, *, until: int | None = None, rgb: bool = True) -> list[ModulatedLayer]:
        """Return the layers in the order in which they are computed.

        Args:
            until: the resolution of the last block; None: the last of the network.
            rgb: whether to include the ToRGB layers.
        """
        layers = []
        for k, resolution in enumerate(self.resolutions(until)):
            block = self.block(resolution)
            if resolution > 4:
                layers.append(ModulatedLayer(f"b{resolution}.conv0", 2 * k - 1, block.conv0))
            layers.append(ModulatedLayer(f"b{resolution}.conv1", 2 * k, block.conv1))
            if rgb and block.torgb is not None:
                layers.append(ModulatedLayer(f"b{resolution}.torgb", 2 * k + 1, block.torgb))
        return layers

    def resolutions(self, until: int | None) -> list[int]:
        """Return the resolutions of the blocks from 4 to `until`; None: to the last."""
        return [r for r in self.block_resolutions if until is None or r <= until]

    def features(self, modulations: Modulations, until: int, noise_mode: NoiseMode = "const") -> Tensor:
        """Return the output [B, C, until, until] of the block of resolution `until`; compute nothing beyond it."""
        *_, (_, x) = self.blocks(modulations, until, noise_mode)
        return x

    def images(self, modulations: Modulations, until: int | None = None, noise_mode: NoiseMode = "const") -> Tensor:
        """Return the images [B, 3, until, until] summed up to the block of resolution `until`; None: to the last block."""
        return self.sum_rgb(self.blocks(modulations, until, noise_mode), modulations)

    def sum_rgb(self, blocks: Iterable[tuple[int, Tensor]], modulations: Modulations) -> Tensor:
        """Sum what the ToRGB layers of these blocks make of their outputs.

        Args:
            blocks: (resolution r, output [B, C, r, r]) of each block, from 4 up.

        Returns:
            images [B, 3, r, r], r the resolution of the last block.

        Raises:
            ValueError: none of the blocks has a ToRGB layer.
        """
        image: Tensor | None = None
        for resolution, x in blocks:
            block = self.block(resolution)
            if block.torgb is None:
                continue
            rgb = block.torgb(x, modulations[f"b{resolution}.torgb"])  # [B, 3, r, r]
            image = rgb if image is None else upsample(image, block.resample_filter) + rgb  # [B, 3, r, r]
        if image is None:
            raise ValueError("none of these blocks makes an image in this architecture")
        return image

    def blocks(self, modulations: Modulations, until: int | None, noise_mode: NoiseMode) -> Iterator[tuple[int, Tensor]]:
        """Yield (resolution r, output [B, C, r, r]) of the blocks from 4 to `until`; None: to the last."""
        batch = len(modulations["b4.conv1"].scale)
        x = self.block(4).const.expand(batch, -1, -1, -1)  # [B, C, 4, 4]
        for resolution in self.resolutions(until):
            name = f"b{resolution}"
            conv0, conv1 = modulations.get(f"{name}.conv0"), modulations[f"{name}.conv1"]
            x = self.block(resolution)(x, conv0, conv1, noise_mode)  # [B, C, r, r]
            yield resolution, x


class Generator(nn.Module):
    """The networks from z to w and from w to images; frozen or trainable, on any device and in any floating type."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mapping.w_avg.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of w."""
        return self.mapping.w_avg.dtype

    @torch.no_grad()
    def map(self, *, seed: int, truncation_psi: float = 1.0, class_index: int | None = None) -> Tensor:
        """Return w+ [1, L, D] of a seed, whose z is the one that NVIDIA's tools draw.

        Args:
            seed: 0 to 2**32 - 1.
            truncation_psi: 1 is the untouched sample, 0 the mean of w.
            class_index: 0 to c_dim - 1; for conditional generators, and for them alone.
        """
        z = np.random.RandomState(seed).randn(1, self.config.z_dim)
        w = self.mapping(torch.from_numpy(z).to(self.device, self.dtype), self.label(class_index))  # [1, D]
        w = self.mapping.truncate(w, truncation_psi)  # [1, D]
        return self.broadcast(w)  # [1, L, D]

    def label(self, class_index: int | None) -> Tensor | None:
        """Return the one-hot label [1, c_dim] of a class in the generator's type; None for a generator without classes.

        Raises:
            ValueError: class_index is none of the generator's classes.
        """
        if self.config.c_dim == 0 and class_index is None:
            return None
        if self.config.c_dim == 0:
            raise ValueError("the generator has no classes")
        if class_index is None or not 0 <= class_index < self.config.c_dim:
            raise ValueError(f"class_index must be 0 to {self.config.c_dim - 1}, got {class_index}")
        return F.one_hot(torch.tensor([class_index], device=self.device), self.config.c_dim).to(self.dtype)  # [1, c_dim]

    def broadcast(self, w: Tensor) -> Tensor:
        """Repeat w [B, D] as all rows of w+ [B, L, D]."""
        return w.unsqueeze(1).repeat(1, self.config.num_ws, 1)

    def images(self, ws: Tensor, *, until: int | None = None, noise_mode: NoiseMode = "const") -> Tensor:
        """Render w+ [B, L, D] to float images [B, 3, R, R] in about [-1, 1], not clamped.

        Args:
            until: the resolution R of the last block; None: the last of the network.
        """
        layers = self.synthesis.layers(until=until)
        return self.synthesis.images(modulate(layers, ws), until, noise_mode)

    @torch.no_grad()
    def render(self, w: Tensor) -> np.ndarray:
        """Render w+ [1, L, D] to uint8 pixels [R, R, 3]."""
        pixels: np.ndarray = to_pixels(self.images(w))[0]
        return pixels


def channels_last(generator: Generator) -> Generator:
    """Lay out the generator's convolutions for speed and return it: twice as fast on CPUs, measured."""
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    for layer in generator.synthesis.modules():
        if isinstance(layer, SynthesisLayer) and layer.up:  # a transposed convolution reads the transposed weight
            transposed = layer.weight.data.transpose(0, 1).contiguous(memory_format=torch.channels_last)
            layer.weight.data = transposed.transpose(0, 1)
    return generator


def to_pixels(images: Tensor) -> np.ndarray:
    """Convert float images [B, 3, H, W] in [-1, 1] to uint8 pixels [B, H, W, 3]; values beyond the range are clipped."""
    pixels: np.ndarray = to_uint8(images).cpu().numpy()
    return pixels


def to_uint8(images: Tensor) -> Tensor:
    """Convert float images [B, 3, H, W] in [-1, 1] to a uint8 tensor [B, H, W, 3] on the same device."""
    levels = (images * 127.5 + 128).clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1)  # [B, H, W, 3]


def normalize(x: Tensor) -> Tensor:
    """Scale each row of x [B, D] to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def scale_channels(x: Tensor, factors: Tensor) -> Tensor:
    """Multiply each channel of x [B, C, H, W] by factors [B, C]."""
    return x * factors.to(x.dtype)[:, :, None, None]


def binomial_filter() -> Tensor:
    """Return the resampling filter [4, 4]: [1, 3, 3, 1] x [1, 3, 3, 1], scaled to the sum 1."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return torch.outer(line, line)


def upsample(image: Tensor, resample_filter: Tensor) -> Tensor:
    """Double an image [B, C, H, W] to [B, C, 2H, 2W]: zeros between the pixels, then the filter [4, 4] with gain 4."""
    channels = image.shape[1]
    kernel = (resample_filter * 4).expand(channels, 1, 4, 4)
    return F.conv_transpose2d(image, kernel, stride=2, padding=1, groups=channels)  # [B, C, 2H, 2W]
