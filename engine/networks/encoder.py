"""A small network that guesses the w of a picture: where a projection starts when the model has one."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.networks.config import EncoderConfig


class Block(nn.Module):
    """Two 3x3 convolutions around a short cut."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(8, out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv0(x)))
        return F.silu(x + self.conv1(x))


class Encoder(nn.Module):
    """Pictures [B, 3, R, R] in [-1, 1] -> w [B, D]."""

    w_avg: Tensor  # [D]
    w_std: Tensor  # []

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Block(3, config.widths[0], stride=2)
        self.down = nn.ModuleList(Block(fine, coarse, stride=2) for fine, coarse in pairwise(config.widths))
        cells = config.resolution // 2 ** len(config.widths)
        self.hidden = nn.Linear(config.widths[-1] * cells**2, config.hidden)
        self.head = nn.Linear(config.hidden, config.w_dim)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))
        self.register_buffer("w_std", torch.ones([]))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.config.resolution:
            images = F.interpolate(images, size=(self.config.resolution, self.config.resolution), mode="area")
        x = self.stem(images)
        for down in self.down:
            x = down(x)
        guess: Tensor = self.w_avg + self.w_std * self.head(F.silu(self.hidden(x.flatten(1)))).float()
        return guess
