"""Trains the landmark detector on drawings alone: factors drawn at random, the picture in, the landmarks out.

Pictures are blurred, brightened and made noisy at random, so that the detector looks for shapes and not for the drawing's
exact edges; half of them are truncated as the demo's samples are.

    python -m benchmarks.train_detector --out runs/detector --minutes 30       # goes on where runs/detector stands
    python -m benchmarks.train_detector --out runs/detector --minutes 0        # only measures

Writes detector.safetensors, state.pt and log.jsonl (median and mean error in pixels on held-out drawings).
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.faces.detector import SIZE, LandmarkDetector, detect
from benchmarks.faces.factors import Z_DIM, factors_of
from benchmarks.faces.renderer import Picture, render

BATCH = 16
LEARNING_RATE = 2e-3
EMA_HALF_LIFE = 2_000  # pictures
HELD_OUT = 512


class Trainer:
    def __init__(self, pictures: int) -> None:
        self.detector = LandmarkDetector().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.detector).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.detector.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
        self.length = pictures
        self.seen = 0

    def step(self) -> float:
        picture = draw_faces(BATCH)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = self.detector(worsen(picture.images).contiguous(memory_format=torch.channels_last))
        loss = F.smooth_l1_loss(found, picture.landmarks, beta=0.5)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * self.share()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.detector.parameters(), 5.0)
        self.optimizer.step()
        self.seen += BATCH
        decay = 0.5 ** (BATCH / EMA_HALF_LIFE)
        for mean, now in zip(self.average.parameters(), self.detector.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - decay)
        return loss.item()

    def share(self) -> float:
        """Of the learning rate: a warm-up, then half a cosine."""
        done = min(1.0, self.seen / self.length)
        return min(1.0, (self.seen + BATCH) / 2_000) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

    def save(self, folder: Path) -> None:
        state = {"detector": self.detector.state_dict(), "average": self.average.state_dict()}
        torch.save(state | {"optimizer": self.optimizer.state_dict(), "seen": self.seen}, folder / "state.pt.part")
        (folder / "state.pt.part").rename(folder / "state.pt")
        weights = {name: value.contiguous() for name, value in self.average.state_dict().items()}
        save_file(weights, folder / "detector.safetensors")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        self.detector.load_state_dict(state["detector"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen = state["seen"]


def draw_faces(count: int) -> Picture:
    """Half of them truncated, colors of another z."""
    psi = torch.where(torch.rand(count, 1) < 0.5, torch.empty(count, 1).uniform_(0.4, 1.0), torch.ones(count, 1))
    return render(factors_of(torch.randn(count, Z_DIM), torch.randn(count, Z_DIM), psi), SIZE, chunk=count)


def worsen(images: Tensor) -> Tensor:
    """Blur, contrast, brightness and noise of random strength for each picture."""
    count = len(images)
    strength = torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.7)
    images = images + strength * (F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1) - images)
    images = images * (0.85 + 0.3 * torch.rand(count, 1, 1, 1)) + torch.empty(count, 3, 1, 1).uniform_(-0.1, 0.1)
    return images + torch.randn_like(images) * torch.rand(count, 1, 1, 1) * 0.08


@torch.no_grad()
def errors(detector: LandmarkDetector, count: int = HELD_OUT) -> Tensor:
    """Distance [N, K] in pixels to the truth on drawings of a seed of their own."""
    z = torch.randn(count, Z_DIM, generator=torch.Generator().manual_seed(777))
    picture = render(factors_of(z), SIZE)
    apart: Tensor = (detect(detector, picture.images) - picture.landmarks).norm(dim=2)
    return apart


def report(trainer: Trainer, seconds: float, loss: float, out: Path) -> None:
    error = errors(trainer.average)
    line = {"pictures": trainer.seen, "seconds": round(seconds, 1), "loss": round(loss, 4)}
    line |= {"median_px": round(error.median().item(), 3), "mean_px": round(error.mean().item(), 3)}
    line |= {"p95_px": round(error.quantile(0.95).item(), 3)}
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
    trainer.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing run goes on")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to train now")
    parser.add_argument("--pictures", type=int, default=80_000, help="length of the learning rate's decay")
    parser.add_argument("--report-every", type=float, default=60.0, help="seconds between log lines")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    trainer, loss = Trainer(options.pictures), math.nan
    if (options.out / "state.pt").exists():
        trainer.load(options.out)
    torch.manual_seed(1 + trainer.seen)
    started = reported = time.monotonic()
    while time.monotonic() - started < options.minutes * 60 and trainer.seen < trainer.length:
        loss = trainer.step()
        if time.monotonic() - reported > options.report_every:
            reported = time.monotonic()
            report(trainer, reported - started, loss, options.out)
    report(trainer, time.monotonic() - started, loss, options.out)


if __name__ == "__main__":
    main()
