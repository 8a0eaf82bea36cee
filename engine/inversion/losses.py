"""How alike two pictures look: losses beside the pixels' own. Pictures are float [B, 3, H, W] in about [-1, 1]."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import CheckpointDamaged, CheckpointMissing
from engine.networks.discriminator import Discriminator

Similarity = Callable[[Tensor, Tensor], Tensor]  # (pictures, target) -> a loss, 0 for equal pictures
SCALES = 4  # full size, 1/2, 1/4 and 1/8
COARSEST_FEATURES = 8  # of a discriminator: from there on it tells where nothing is


def pixel_loss(images: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, averaged over the scales: coarse ones pull what is displaced by more than its size."""
    losses = []
    for k in range(SCALES):
        if k > 0:
            images, target = (F.avg_pool2d(x, 2) for x in (images, target))
        losses.append((images - target).square().mean())
    return torch.stack(losses).mean()


class DiscriminatorLoss:
    """Mean squared difference of a discriminator's features, each block's relative to the target's own energy."""

    def __init__(self, discriminator: Discriminator) -> None:
        self.discriminator = discriminator

    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        found = self.discriminator.features(images)
        with torch.no_grad():
            wanted = self.discriminator.features(target)
        blocks = [resolution for resolution in found if resolution > COARSEST_FEATURES]
        losses = [(found[r] - wanted[r]).square().mean() / wanted[r].square().mean().clamp(min=1e-8) for r in blocks]
        return torch.stack(losses).mean()


class Fire(nn.Module):
    """SqueezeNet's module: 1x1 down, then 1x1 and 3x3 side by side."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


def pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def squeeze_net() -> nn.Sequential:
    """The convolutions of SqueezeNet 1.1, numbered as torchvision does."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64),
        pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool(), Fire(256, 48, 192),
        Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
    )  # fmt: skip


SLICES = ((0, 2), (2, 5), (5, 8), (8, 10), (10, 11), (11, 12), (12, 13))  # between them LPIPS looks


class Lpips(nn.Module):
    """LPIPS (Zhang et al. 2018) on SqueezeNet, mean over the pictures."""

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
        x = (torch.cat([images, target]) - self.shift) / self.scale
        return learned_distance(self.features, list(self.heads), x)


def learned_distance(features: nn.Sequential, heads: list[Tensor], x: Tensor) -> Tensor:
    """The first half of x [2B, 3, H, W] against the second: unit features compared under the learned weights."""
    distances = []
    for (start, stop), head in zip(SLICES, heads, strict=True):
        x = features[start:stop](x)
        one, other = (x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)).chunk(2)
        distances.append(F.conv2d((one - other).square(), head).mean())
    return torch.stack(distances).sum()


def load_lpips(path: Path) -> Lpips:
    """The network of a file that holds the `lpips` package's state dict of LPIPS(net="squeeze"), tensors only.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointDamaged: it holds something else.
    """
    if not path.is_file():
        raise CheckpointMissing(f"the LPIPS file {path} is not there")
    network = Lpips()
    try:
        tensors = torch.load(path, weights_only=True, map_location="cpu")
        network.load_state_dict(renamed(tensors), strict=False)
    except Exception as error:  # torch raises whatever its readers met
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointDamaged(f"the LPIPS file {path.name} cannot be read: {reason}") from error
    return network.eval().requires_grad_(False)


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """net.slice2.3.squeeze.weight -> features.3.squeeze.weight; lin0.model.1.weight -> heads.0. Raises KeyError."""
    heads = {f"heads.{k}": tensors[f"lin{k}.model.1.weight"] for k in range(len(SLICES))}
    found = {"features." + name.split(".", 2)[2]: value for name, value in tensors.items() if name.startswith("net.slice")}
    expected = {f"features.{name}" for name in squeeze_net().state_dict()}
    if missing := expected - found.keys():
        raise KeyError(f"lacks {min(missing)}")
    return heads | found
