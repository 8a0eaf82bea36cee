"""How different two pictures are. Pictures are [B, 3, H, W] in [-1, 1]; errors are of values in [0, 1]."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.inversion.losses import SLICES, learned_distance, squeeze_net


def mse(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Return the mean squared error, of all pixels or of those where [H, W] is True."""
    error = ((a - b) / 2).square().mean(dim=(0, 1))
    return float(error.mean() if where is None else error[where].mean())


def psnr(error: float) -> float:
    """Return the PSNR of a mean squared error, dB; 100 dB for no error."""
    return min(100.0, -10 * float(np.log10(max(error, 1e-10))))


def ssim(a: Tensor, b: Tensor) -> float:
    """Return the structural similarity (Wang et al. 2004): windows of 11 pixels, sigma 1.5, mean over channels."""
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


class PerceptualDistance(nn.Module):
    """LPIPS-like distance on SqueezeNet 1.1; whether the heads were fitted on these very features is not established."""

    def __init__(self, folder: Path) -> None:
        """Read squeezenet_v1.1_imagenet_notop_torchnames.npz and lpips_v0.1_squeeze.pth."""
        super().__init__()
        self.features = squeeze_net()
        with np.load(folder / "squeezenet_v1.1_imagenet_notop_torchnames.npz") as arrays:
            self.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        heads = torch.load(folder / "lpips_v0.1_squeeze.pth", weights_only=True, map_location="cpu")
        self.heads = [heads[f"lin{k}.model.1.weight"] for k in range(len(SLICES))]  # [1, C, 1, 1]
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> float:
        return float(learned_distance(self.features, self.heads, torch.cat([self.prepare(a), self.prepare(b)])))

    @staticmethod
    def prepare(image: Tensor) -> Tensor:
        """Return the picture as Caffe's networks take it: BGR, 0 to 255, means subtracted."""
        means = image.new_tensor([103.939, 116.779, 123.68])[:, None, None]
        return (image.flip(1) + 1) * 127.5 - means
