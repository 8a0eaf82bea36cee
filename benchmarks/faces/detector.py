"""Finds the landmarks of a face in a picture, by the picture alone.

A small hourglass network has one heat map for each landmark; the point is the map's center of mass. `benchmarks.train_detector`
trains it on drawings, never on a generator's pictures or features, so that its answer is independent of both.
"""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.faces.parts import LANDMARKS
from engine.networks.encoder import ResidualBlock

WIDTHS = (32, 64, 96, 128)  # channels at 1/2, 1/4, 1/8 and 1/16 of the picture's size
WEIGHTS = Path(__file__).with_name("detector.safetensors")
SIZE = 128  # pixels of the pictures it was trained on
BATCH = 32  # pictures


class LandmarkDetector(nn.Module):
    """A network from pictures [B, 3, S, S] in [-1, 1] to landmarks [B, K, 2], xy pixels in the order of LANDMARKS."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ResidualBlock(3, WIDTHS[0], stride=2)
        pairs = list(pairwise(WIDTHS))
        self.down = nn.ModuleList(ResidualBlock(fine, coarse, stride=2) for fine, coarse in pairs)
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(ResidualBlock(fine, fine) for fine, _ in pairs)
        self.heat = nn.Conv2d(WIDTHS[0], len(LANDMARKS), 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = [self.stem(images)]
        for down in self.down:
            maps.append(down(maps[-1]))
        x = maps.pop()
        for narrow, up in zip(reversed(self.narrow), reversed(self.up), strict=True):
            x = up(maps.pop() + F.interpolate(narrow(x), scale_factor=2, mode="bilinear", align_corners=False))
        return center_of_mass(self.heat(x).float()) * images.shape[-1] - 0.5


def center_of_mass(heat: Tensor) -> Tensor:
    """Return the centers [B, K, 2] of heat maps [B, K, f, f], xy from 0 (left, top edge) to 1."""
    size = heat.shape[-1]
    share = heat.flatten(2).softmax(dim=2).view_as(heat)
    centers = (torch.arange(size, device=heat.device, dtype=heat.dtype) + 0.5) / size
    return torch.stack([share.sum(dim=2) @ centers, share.sum(dim=3) @ centers], dim=2)


def load_detector(device: torch.device | str = "cpu") -> LandmarkDetector:
    """Load the trained detector, frozen."""
    from safetensors.torch import load_file

    detector = LandmarkDetector()
    detector.load_state_dict(load_file(WEIGHTS))
    detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return detector.eval().requires_grad_(False)


@torch.no_grad()
def detect(detector: LandmarkDetector, images: Tensor) -> Tensor:
    """Return the landmarks [B, K, 2] in pixels of the images [B, 3, R, R], whatever R is."""
    scale = images.shape[-1] / SIZE
    if scale != 1:
        images = F.interpolate(images, size=(SIZE, SIZE), mode="area" if scale > 1 else "bilinear")
    points = torch.cat([detector(part.clamp(-1, 1)) for part in torch.split(images, BATCH)])
    return (points + 0.5) * scale - 0.5
