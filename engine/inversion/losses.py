"""Losses between images: of pixels, of a discriminator's features, and LPIPS. Images are float [B, 3, H, W] in about [-1, 1]."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import CheckpointDamaged, CheckpointMissing
from engine.networks.discriminator import Discriminator

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]  # (images, target) -> a loss, 0 for equal images
SCALES = 4  # full size, 1/2, 1/4 and 1/8
MIN_BLOCK_RESOLUTION = 16  # of a discriminator's features: coarser blocks do not say where anything is


def pixel_loss(images: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error, averaged over the scales; coarse scales see what is displaced by more than its size.

    Args:
        images, target: [B, 3, H, W].
    """
    losses = []
    for k in range(SCALES):
        if k > 0:
            images, target = F.avg_pool2d(images, 2), F.avg_pool2d(target, 2)  # [B, 3, H/2, W/2]
        losses.append((images - target).square().mean())
    return torch.stack(losses).mean()


class DiscriminatorLoss:
    """The mean squared difference of a discriminator's features, of each block relative to the energy of the target's."""

    def __init__(self, discriminator: Discriminator) -> None:
        self.discriminator = discriminator

    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the loss of images [B, 3, R, R]; the target [B, 3, R, R] gets no gradient."""
        features = self.discriminator.features(images)
        with torch.no_grad():
            target_features = self.discriminator.features(target)
        losses = []
        for resolution, wanted in target_features.items():
            if resolution >= MIN_BLOCK_RESOLUTION:
                error = (features[resolution] - wanted).square().mean()
                energy = wanted.square().mean().clamp(min=1e-8)
                losses.append(error / energy)
        return torch.stack(losses).mean()


class Fire(nn.Module):
    """SqueezeNet's module: a 1x1 convolution to fewer channels, then 1x1 and 3x3 convolutions side by side."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, 2 expand, H, W]."""
        x = self.squeeze(x).relu()  # [B, squeeze, H, W]
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


def pool() -> nn.MaxPool2d:
    """Return SqueezeNet's pooling layer."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def squeeze_net() -> nn.Sequential:
    """Return the convolutions of SqueezeNet 1.1, numbered as torchvision does."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64),
        pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool(), Fire(256, 48, 192),
        Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
    )  # fmt: skip


SLICES = ((0, 2), (2, 5), (5, 8), (8, 10), (10, 11), (11, 12), (12, 13))  # of the layers; LPIPS compares after each


class Lpips(nn.Module):
    """LPIPS (Zhang et al. 2018) on SqueezeNet, the mean over the images."""

    shift: Tensor  # [3, 1, 1]
    scale: Tensor  # [3, 1, 1]

    def __init__(self) -> None:
        super().__init__()
        self.features = squeeze_net()
        widths = (64, 128, 256, 384, 384, 512, 512)
        self.heads = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in widths)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the distance of images [B, 3, H, W] from the target [B, 3, H, W]."""
        x = torch.cat([images, target])  # [2B, 3, H, W]
        x = (x - self.shift) / self.scale
        return learned_distance(self.features, list(self.heads), x)


def learned_distance(features: nn.Sequential, heads: list[Tensor], x: Tensor) -> Tensor:
    """Return the distance of the first half of a batch from the second half.

    Args:
        heads: the learned weights [1, C, 1, 1] of the features after each slice.
        x: [2B, 3, H, W], normalized as the network wants it.
    """
    distances = []
    for (start, stop), head in zip(SLICES, heads, strict=True):
        x = features[start:stop](x)  # [2B, C, H', W']
        norm = x.square().sum(dim=1, keepdim=True).sqrt()  # [2B, 1, H', W']
        first, second = (x / (norm + 1e-10)).chunk(2)  # [B, C, H', W'] each
        distances.append(F.conv2d((first - second).square(), head).mean())
    return torch.stack(distances).sum()


def load_lpips(path: Path) -> Lpips:
    """Load LPIPS from the state dict that the `lpips` package's LPIPS(net="squeeze") has, stored as tensors only.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointDamaged: it holds something else.
    """
    if not path.is_file():
        raise CheckpointMissing(f"the LPIPS file {path.name} is not there")
    network = Lpips()
    try:
        tensors = torch.load(path, weights_only=True, map_location="cpu")
        network.load_state_dict(rename_lpips_tensors(tensors), strict=False)
    except Exception as error:  # torch raises whatever its readers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointDamaged(f"the LPIPS file {path.name} cannot be read: {reason}") from error
    return network.eval().requires_grad_(False)


def rename_lpips_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename net.slice2.3.squeeze.weight to features.3.squeeze.weight, and lin0.model.1.weight to heads.0.

    Raises:
        KeyError: a tensor is missing.
    """
    heads = {f"heads.{k}": tensors[f"lin{k}.model.1.weight"] for k in range(len(SLICES))}
    features = {"features." + name.split(".", 2)[2]: value for name, value in tensors.items() if name.startswith("net.slice")}
    expected = {f"features.{name}" for name in squeeze_net().state_dict()}
    if missing := expected - features.keys():
        raise KeyError(f"lacks {min(missing)}")
    return heads | features
