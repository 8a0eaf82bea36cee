"""The StyleGAN2 discriminator of NVIDIA's networks, residual architecture: a trained eye for what a generator draws.

Names follow the published networks, so that a converted checkpoint keeps its keys. Images are float [B, 3, R, R] in
about [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.networks.config import DiscriminatorConfig
from engine.networks.stylegan2 import SQRT2, SQRT_HALF, FullyConnectedLayer, binomial_filter

GROUP = 4  # images whose spread one minibatch feature tells


class Convolution(nn.Module):
    """Convolution with run-time scaling of weights; halves the resolution through the low-pass filter when down is set."""

    resample_filter: Tensor  # [4, 4]

    def __init__(self, in_channels: int, out_channels: int, size: int, *, bias: bool = True, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, size, size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * size * size)
        self.down = down
        if down:
            self.register_buffer("resample_filter", binomial_filter())

    def forward(self, x: Tensor) -> Tensor:
        weight, size = self.weight * self.weight_gain, self.weight.shape[-1]
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=size // 2)
        channels = x.shape[1]
        x = F.conv2d(x, self.resample_filter.expand(channels, 1, 4, 4), padding=1 + size // 2, groups=channels)
        return F.conv2d(x, weight, self.bias, stride=2)


class DiscriminatorBlock(nn.Module):
    """[B, C, r, r] -> [B, C', r/2, r/2]; the first block takes the image."""

    def __init__(self, config: DiscriminatorConfig, resolution: int) -> None:
        super().__init__()
        inputs, outputs = config.channels(resolution), config.channels(resolution // 2)
        self.clamp = config.conv_clamp
        if resolution == config.resolution:
            self.fromrgb = Convolution(3, inputs, 1)
        self.conv0 = Convolution(inputs, inputs, 3)
        self.conv1 = Convolution(inputs, outputs, 3, down=True)
        self.skip = Convolution(inputs, outputs, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "fromrgb"):
            x = activate(self.fromrgb(x), self.clamp)
        y = self.skip(x) * SQRT_HALF
        x = activate(self.conv0(x), self.clamp)
        halved: Tensor = y + activate(self.conv1(x), self.clamp, SQRT_HALF)
        return halved


class Epilogue(nn.Module):
    """The last features [B, C, 4, 4] and their spread over the images -> one logit an image."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        channels = config.channels(4)
        self.clamp = config.conv_clamp
        self.conv = Convolution(channels + 1, channels, 3)
        self.fc = FullyConnectedLayer(channels * 16, channels)
        self.out = FullyConnectedLayer(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = activate(self.conv(torch.cat([x, spread(x)], dim=1)), self.clamp)
        logits: Tensor = self.out(activate(self.fc(x.flatten(1))))
        return logits


class Discriminator(nn.Module):
    """Images -> the outputs of its blocks, which tell pictures apart as the generator's training did."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.block_resolutions = [r for r in reversed(config.block_resolutions) if r > 4]
        for resolution in self.block_resolutions:
            self.add_module(f"b{resolution}", DiscriminatorBlock(config, resolution))
        self.b4 = Epilogue(config)

    def features(self, images: Tensor) -> dict[int, Tensor]:
        """The output of every block by its resolution r, R to 8: [B, C, r/2, r/2]."""
        found, x = {}, images
        for resolution in self.block_resolutions:
            x = found[resolution] = self.get_submodule(f"b{resolution}")(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """How real each image looks: logits [B, 1]; images of one batch are judged in groups of four."""
        logits: Tensor = self.b4(self.features(images)[8])
        return logits


def activate(x: Tensor, clamp: float | None = None, gain: float = 1.0) -> Tensor:
    x = F.leaky_relu(x, 0.2) * (SQRT2 * gain)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def spread(x: Tensor) -> Tensor:
    """Mean standard deviation within groups of images, as one more channel: [B, 1, H, W]."""
    count, channels, height, width = x.shape
    group = min(GROUP, count)
    parts = x.reshape(group, count // group, channels, height, width)
    deviation = (parts.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # [B / group]
    return deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)
