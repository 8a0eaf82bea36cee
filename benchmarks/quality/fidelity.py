"""Measures how well the demo checkpoint draws what its recipe says: PSNR, and landmarks where the detector sees them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.faces.detector import LandmarkDetector, detect
from benchmarks.faces.factors import factors_of
from benchmarks.faces.parts import LANDMARKS
from benchmarks.faces.renderer import render
from benchmarks.quality.bootstrap import Interval, interval
from engine.networks.stylegan2 import Generator

SEEDS_AT_ONCE = 20
GROUPS = {
    "pupils": ("pupil_",),
    "mouth corners": ("mouth_left", "mouth_right"),
    "brows": ("brow_",),
    "pupils, mouth corners, brows": ("pupil_", "mouth_left", "mouth_right", "brow_"),
    "eyelids and corners": ("eye_",),
    "nose": ("nose_", "nostril_"),
    "lips": ("lip_", "mouth_top", "mouth_bottom"),
    "chin": ("chin",),
    "hairline": ("hairline",),
    "all": ("",),
}


@dataclass(frozen=True)
class SeedErrors:
    """The errors of N seeds at K landmarks."""

    psnr_db: np.ndarray  # [N]
    drawn_px: np.ndarray  # [N, K], from the truth to where the detector sees the drawing's landmark
    generated_px: np.ndarray  # [N, K], the same on G(z)


@dataclass(frozen=True)
class LandmarkErrors:
    """The errors of one group of landmarks, pixels, where the detector sees them: on drawings (its floor) and on G(z)."""

    landmarks: str
    drawn_median: float
    drawn_p95: float
    generated_median: float
    generated_p95: float


@dataclass(frozen=True)
class Fidelity:
    """The figures of all seeds."""

    seeds: int
    psnr_db: Interval
    detector_mean_px: float  # over drawings and all landmarks
    errors: list[LandmarkErrors]


@torch.no_grad()
def measure(generator: Generator, detector: LandmarkDetector, seeds: range) -> Iterator[SeedErrors]:
    """Yield the errors of some seeds at a time; none was seen in training, which draws its own z's."""
    for first in range(seeds.start, seeds.stop, SEEDS_AT_ONCE):
        part = range(first, min(first + SEEDS_AT_ONCE, seeds.stop))
        z = np.stack([np.random.RandomState(seed).randn(generator.config.z_dim) for seed in part])
        yield measure_errors(generator, detector, torch.from_numpy(z).float().to(generator.device))


def measure_errors(generator: Generator, detector: LandmarkDetector, z: Tensor) -> SeedErrors:
    """Compare G(z) of z [N, Z_DIM] with the drawings of the factors behind z."""
    truth = render(factors_of(z), generator.config.resolution)
    ws = generator.broadcast(generator.mapping(z))
    images = generator.images(ws).clamp(-1, 1)
    error = ((images - truth.images) / 2).square().mean(dim=(1, 2, 3))
    drawn, generated = ((detect(detector, pictures) - truth.landmarks).norm(dim=2) for pictures in (truth.images, images))
    return SeedErrors((-10 * error.log10()).cpu().numpy(), drawn.cpu().numpy(), generated.cpu().numpy())


def summarize(parts: list[SeedErrors]) -> Fidelity:
    """Return the figures of all seeds together."""
    psnr, drawn, generated = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("psnr_db", "drawn_px", "generated_px")
    )
    errors = []
    for group, prefixes in GROUPS.items():
        members = [k for k, name in enumerate(LANDMARKS) if name.startswith(prefixes)]
        figures = [float(np.percentile(px[:, members], q)) for px in (drawn, generated) for q in (50, 95)]
        errors.append(LandmarkErrors(group, *figures))
    return Fidelity(len(psnr), interval(psnr.tolist()), float(drawn.mean()), errors)
