"""Trains the landmark detector on drawings alone: factors drawn at random, the picture in, the landmarks out.

Pictures are blurred, brightened and made noisy at random, so that the detector looks for shapes and not for the drawing's
exact edges; half of them are truncated as the demo's samples are.

    python -m benchmarks.train_detector --out runs/detector --minutes 30       # goes on where runs/detector stands
    python -m benchmarks.train_detector --out runs/detector --minutes 0        # only measures

Writes detector.safetensors, state.pt and log.jsonl (median and mean error in pixels on held-out drawings).
"""

import argparse
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import training
from benchmarks.faces.detector import SIZE, LandmarkDetector, detect
from benchmarks.faces.factors import Z_DIM, factors_of
from benchmarks.faces.renderer import render
from benchmarks.training import Recipe, Sample, main, worsen

PICTURES = 80_000
HELD_OUT = 512


def build(pictures: int) -> Recipe:
    """Make the recipe for a training of so many pictures."""
    return Recipe(
        network=LandmarkDetector(), loss=landmark_loss, judge=judge, export=export, learning_rate=2e-3, pictures=pictures
    )


def landmark_loss(network: nn.Module, sample: Sample) -> Tensor:
    """Return the smooth L1 loss of the landmarks, pixels."""
    found = network(worsen(sample.picture.images).contiguous(memory_format=torch.channels_last))
    return F.smooth_l1_loss(found, sample.picture.landmarks, beta=0.5)


def judge(network: nn.Module) -> dict[str, float]:
    """Measure the error on held-out drawings."""
    error = errors(cast(LandmarkDetector, network))
    return {"median_px": error.median().item(), "mean_px": error.mean().item(), "p95_px": error.quantile(0.95).item()}


@torch.no_grad()
def errors(detector: LandmarkDetector, count: int = HELD_OUT) -> Tensor:
    """Return the distance [N, K] in pixels to the truth, on drawings that training does not use."""
    z = torch.randn(count, Z_DIM, generator=torch.Generator().manual_seed(777))
    picture = render(factors_of(z), SIZE)
    apart: Tensor = (detect(detector, picture.images) - picture.landmarks).norm(dim=2)
    return apart


def export(network: nn.Module, folder: Path) -> None:
    """Write the weights."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "detector.safetensors")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    return training.make_parser(__doc__, PICTURES)


if __name__ == "__main__":
    main(make_parser().parse_args(), build)
