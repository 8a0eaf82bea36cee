"""Trains a small network on drawings: the part that the recipes of the landmark detector and the encoder share."""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.faces.factors import Z_DIM, factors_of
from benchmarks.faces.renderer import Picture, render

BATCH = 16
SIZE = 128  # pixels of the drawings
EMA_HALF_LIFE = 2_000  # pictures
WARM_UP = 2_000  # pictures


@dataclass(frozen=True)
class Sample:
    """Drawings and the latents that they were drawn from."""

    z: Tensor  # [B, Z_DIM], of the shapes
    psi: Tensor  # [B, 1], truncation
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network with its loss, its evaluation and its export."""

    network: nn.Module
    loss: Callable[[nn.Module, Sample], Tensor]
    judge: Callable[[nn.Module], dict[str, float]]  # figures on held-out drawings
    export: Callable[[nn.Module, Path], None]  # writes the weights into a folder
    learning_rate: float
    mixed: bool = True  # colors of another z than the shapes
    pictures: int  # length of the learning rate's decay


class Trainer:
    """Trains a recipe's network; its state can be saved and loaded."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.network = recipe.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
        self.seen = 0  # pictures

    def step(self) -> float:
        """Train on one batch and return its loss."""
        sample = draw_faces(BATCH, mixed=self.recipe.mixed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.recipe.loss(self.network, sample)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self.share()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.seen += BATCH
        decay = 0.5 ** (BATCH / EMA_HALF_LIFE)
        for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - decay)
        return loss.item()

    def share(self) -> float:
        """Return the part of the learning rate that holds now: a warm-up, then half a cosine."""
        done = min(1.0, self.seen / self.recipe.pictures)
        return min(1.0, (self.seen + BATCH) / WARM_UP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

    def save(self, folder: Path) -> None:
        """Write the state and export the averaged network."""
        state = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        torch.save(state | {"optimizer": self.optimizer.state_dict(), "seen": self.seen}, folder / "state.pt.part")
        (folder / "state.pt.part").rename(folder / "state.pt")
        self.recipe.export(self.average, folder)

    def load(self, folder: Path) -> None:
        """Continue from a saved state."""
        state = torch.load(folder / "state.pt", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen = state["seen"]


def draw_faces(count: int, *, mixed: bool) -> Sample:
    """Draw random faces, half of them truncated; `mixed` takes the colors from another z than the shapes."""
    psi = torch.where(torch.rand(count, 1) < 0.5, torch.empty(count, 1).uniform_(0.4, 1.0), torch.ones(count, 1))
    z = torch.randn(count, Z_DIM)
    z_color = torch.randn(count, Z_DIM) if mixed else z
    return Sample(z, psi, render(factors_of(z, z_color, psi), SIZE, chunk=count))


def worsen(images: Tensor) -> Tensor:
    """Change each picture by blur, contrast, brightness and noise of random strength, so that a network looks for shapes."""
    count = len(images)
    strength = torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.7)
    images = images + strength * (F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1) - images)
    images = images * (0.85 + 0.3 * torch.rand(count, 1, 1, 1)) + torch.empty(count, 3, 1, 1).uniform_(-0.1, 0.1)
    return images + torch.randn_like(images) * torch.rand(count, 1, 1, 1) * 0.08


def report(trainer: Trainer, seconds: float, loss: float, out: Path) -> None:
    """Evaluate, append a line to the log, save."""
    line = {"pictures": trainer.seen, "seconds": round(seconds, 1), "loss": round(loss, 4)}
    line |= {name: round(value, 3) for name, value in trainer.recipe.judge(trainer.average).items()}
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
    trainer.save(out)


def make_parser(description: str | None, pictures: int) -> argparse.ArgumentParser:
    """Make the parser of a recipe's command line; `pictures` is the default length of a training."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing run goes on")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to train now")
    parser.add_argument("--pictures", type=int, default=pictures, help="length of the learning rate's decay")
    parser.add_argument("--report-every", type=float, default=60.0, help="seconds between log lines")
    return parser


def main(options: argparse.Namespace, build: Callable[[int], Recipe]) -> None:
    """Train as the options of the command line say.

    Args:
        build: makes the recipe for a number of pictures.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    trainer, loss = Trainer(build(options.pictures)), math.nan
    if (options.out / "state.pt").exists():
        trainer.load(options.out)
    torch.manual_seed(1 + trainer.seen)
    started = reported = time.monotonic()
    while time.monotonic() - started < options.minutes * 60 and trainer.seen < options.pictures:
        loss = trainer.step()
        if time.monotonic() - reported > options.report_every:
            reported = time.monotonic()
            report(trainer, reported - started, loss, options.out)
    report(trainer, time.monotonic() - started, loss, options.out)
