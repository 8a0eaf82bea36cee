"""The StyleGAN2 discriminator in its residual architecture, in plain PyTorch.

Layers and parameters have the names of NVIDIA's published networks, so a converted checkpoint keeps its keys.
Images are float [B, 3, R, R] in about [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.networks.config import DiscriminatorConfig
from engine.networks.stylegan2 import SQRT2, SQRT_HALF, FullyConnectedLayer, binomial_filter

GROUP_SIZE = 4  # images over which the minibatch standard deviation is taken


class Conv2dLayer(nn.Module):
    """Convolution with run-time scaling of weights; with `down` it halves the resolution, through the low-pass filter."""

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
        """Map x [B, C, H, W] to [B, C', H, W], with `down` to [B, C', H/2, W/2]."""
        weight, size = self.weight * self.weight_gain, self.weight.shape[-1]
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=size // 2)  # [B, C', H, W]
        channels = x.shape[1]
        kernel = self.resample_filter.expand(channels, 1, 4, 4)
        x = F.conv2d(x, kernel, padding=1 + size // 2, groups=channels)  # [B, C, H + 1, W + 1] for 3x3 weights
        return F.conv2d(x, weight, self.bias, stride=2)  # [B, C', H/2, W/2]


class DiscriminatorBlock(nn.Module):
    """The layers of one resolution r, from [B, C, r, r] to [B, C', r/2, r/2]; the first block takes the image."""

    def __init__(self, config: DiscriminatorConfig, resolution: int) -> None:
        super().__init__()
        inputs, outputs = config.channels(resolution), config.channels(resolution // 2)
        self.clamp = config.conv_clamp
        if resolution == config.resolution:
            self.fromrgb = Conv2dLayer(3, inputs, 1)
        self.conv0 = Conv2dLayer(inputs, inputs, 3)
        self.conv1 = Conv2dLayer(inputs, outputs, 3, down=True)
        self.skip = Conv2dLayer(inputs, outputs, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, C, r, r], in the first block images [B, 3, R, R], to features [B, C', r/2, r/2]."""
        if hasattr(self, "fromrgb"):
            x = activate(self.fromrgb(x), self.clamp)  # [B, C, R, R]
        branch = self.skip(x) * SQRT_HALF  # [B, C', r/2, r/2]
        x = activate(self.conv0(x), self.clamp)  # [B, C, r, r]
        x = activate(self.conv1(x), self.clamp, SQRT_HALF)  # [B, C', r/2, r/2]
        output: Tensor = branch + x
        return output


class DiscriminatorEpilogue(nn.Module):
    """The last layers, from features [B, C, 4, 4] and their spread over the images to one logit an image."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        channels = config.channels(4)
        self.clamp = config.conv_clamp
        self.conv = Conv2dLayer(channels + 1, channels, 3)
        self.fc = FullyConnectedLayer(channels * 16, channels)
        self.out = FullyConnectedLayer(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, C, 4, 4] to logits [B, 1]."""
        x = torch.cat([x, minibatch_std(x)], dim=1)  # [B, C + 1, 4, 4]
        x = activate(self.conv(x), self.clamp)  # [B, C, 4, 4]
        x = x.flatten(1)  # [B, 16 C]
        x = activate(self.fc(x))  # [B, C]
        logits: Tensor = self.out(x)  # [B, 1]
        return logits


class Discriminator(nn.Module):
    """The network from images to logits; its blocks' outputs are the features of a perceptual loss."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.block_resolutions = [r for r in reversed(config.block_resolutions) if r > 4]
        for resolution in self.block_resolutions:
            self.add_module(f"b{resolution}", DiscriminatorBlock(config, resolution))
        self.b4 = DiscriminatorEpilogue(config)

    def features(self, images: Tensor) -> dict[int, Tensor]:
        """Return the output [B, C, r/2, r/2] of every block by its resolution r, from R down to 8.

        Args:
            images: [B, 3, R, R].
        """
        features, x = {}, images
        for resolution in self.block_resolutions:
            x = self.get_submodule(f"b{resolution}")(x)  # [B, C, r/2, r/2]
            features[resolution] = x
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return how real each image looks: logits [B, 1]; the images of a batch are judged in groups of four.

        Args:
            images: [B, 3, R, R].
        """
        x = self.features(images)[8]  # [B, C, 4, 4]
        logits: Tensor = self.b4(x)  # [B, 1]
        return logits


def activate(x: Tensor, clamp: float | None = None, gain: float = 1.0) -> Tensor:
    """Apply leaky ReLU and clamp to +-clamp; both are multiplied by gain."""
    x = F.leaky_relu(x, 0.2) * (SQRT2 * gain)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def minibatch_std(x: Tensor) -> Tensor:
    """Return the mean standard deviation of x [B, C, H, W] within groups of images, as one channel [B, 1, H, W]."""
    batch, channels, height, width = x.shape
    group = min(GROUP_SIZE, batch)
    groups = x.reshape(group, batch // group, channels, height, width)
    variance = groups.var(dim=0, unbiased=False)  # [B / group, C, H, W]
    deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))  # [B / group]
    return deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)  # [B, 1, H, W]
