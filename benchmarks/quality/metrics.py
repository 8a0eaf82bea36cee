"""How far two pictures are apart. Pictures are [B, 3, H, W] in [-1, 1]; errors are of values in [0, 1]."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mse(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Mean squared error, of the pixels where [H, W] is True."""
    error = ((a - b) / 2).square().mean(dim=(0, 1))
    return float(error.mean() if where is None else error[where].mean())


def psnr(error: float) -> float:
    """Of a mean squared error, in dB; 100 dB for none."""
    return min(100.0, -10 * float(np.log10(max(error, 1e-10))))


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004): windows of 11 pixels, sigma 1.5, mean over channels."""
    line = torch.exp(-0.5 * ((torch.arange(11, dtype=a.dtype, device=a.device) - 5) / 1.5).square())
    window = (torch.outer(line, line) / line.sum().square())[None, None]
    x, y = (((image + 1) / 2).flatten(0, 1)[:, None] for image in (a, b))

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(z, window)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((top / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))).mean())


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


class PerceptualDistance(nn.Module):
    """LPIPS-like distance on SqueezeNet 1.1: it is not established that these features are the ones the heads were fitted on."""

    SLICES = ((0, 2), (2, 5), (5, 8), (8, 10), (10, 11), (11, 12), (12, 13))

    def __init__(self, folder: Path) -> None:
        """Reads squeezenet_v1.1_imagenet_notop_torchnames.npz and lpips_v0.1_squeeze.pth."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64),
            pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool(), Fire(256, 48, 192),
            Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        )  # fmt: skip
        with np.load(folder / "squeezenet_v1.1_imagenet_notop_torchnames.npz") as arrays:
            self.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        heads = torch.load(folder / "lpips_v0.1_squeeze.pth", weights_only=True, map_location="cpu")
        self.heads = [heads[f"lin{k}.model.1.weight"] for k in range(len(self.SLICES))]  # [1, C, 1, 1]
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> float:
        distance, x = 0.0, torch.cat([self.prepare(a), self.prepare(b)])
        for (start, stop), head in zip(self.SLICES, self.heads, strict=True):
            x = self.features[start:stop](x)
            unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            distance += float(F.conv2d((unit[:1] - unit[1:]).square(), head).mean())
        return distance

    @staticmethod
    def prepare(image: Tensor) -> Tensor:
        """Caffe's: BGR, 0 to 255, means subtracted."""
        means = image.new_tensor([103.939, 116.779, 123.68])[:, None, None]
        return (image.flip(1) + 1) * 127.5 - means
