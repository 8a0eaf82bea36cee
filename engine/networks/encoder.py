"""A small network that estimates the w of an image; a projection starts there when the model has one."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.networks.config import EncoderConfig


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the second with a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(8, out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, C', H / stride, W / stride]."""
        x = self.norm(self.conv0(x))  # [B, C', H / stride, W / stride]
        x = F.silu(x)
        return F.silu(x + self.conv1(x))


class Encoder(nn.Module):
    """The network from images [B, 3, R, R] in [-1, 1] to w [B, D]."""

    w_avg: Tensor  # [D], the mean of w
    w_std: Tensor  # [], the spread of w

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = ResidualBlock(3, config.widths[0], stride=2)
        self.down = nn.ModuleList(ResidualBlock(fine, coarse, stride=2) for fine, coarse in pairwise(config.widths))
        cells = config.resolution // 2 ** len(config.widths)
        self.hidden = nn.Linear(config.widths[-1] * cells**2, config.hidden)
        self.head = nn.Linear(config.hidden, config.w_dim)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))
        self.register_buffer("w_std", torch.ones([]))

    def forward(self, images: Tensor) -> Tensor:
        """Estimate w [B, D].

        Args:
            images: [B, 3, H, W] in [-1, 1], square; other sizes than R are resized.
        """
        if images.shape[-1] != self.config.resolution:
            images = F.interpolate(images, size=(self.config.resolution, self.config.resolution), mode="area")
        x = self.stem(images)  # [B, C, R/2, R/2]
        for down in self.down:
            x = down(x)  # [B, C, H/2, W/2]
        x = x.flatten(1)  # [B, C H W]
        x = F.silu(self.hidden(x))  # [B, hidden]
        offset = self.head(x).float()  # [B, D], in units of the spread of w
        w: Tensor = self.w_avg + self.w_std * offset  # [B, D]
        return w
