"""A one-pass latent predictor in the manner of UserControllableLT (Endo 2022): w and the points' ways in, the change of w out.

It learns from pairs of random samples of the demo model, whose landmarks are known from their factors: given w of the
first and the ways of 1, 5 or all landmarks, the first rows of the second's w. One pass, no loop, no tracking.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.faces.factors import Z_DIM, factors_of
from benchmarks.faces.parts import LANDMARKS, Anatomy
from benchmarks.quality.cases import SHAPE_ROWS, Case
from benchmarks.quality.methods import Ending, Method
from engine.networks.stylegan2 import Generator

NAME = "one-pass predictor"
WIDTH = 128
BATCH = 128
LEARNING_RATE = 1e-3
STEPS = 4_000  # over the last tenth the loss falls by less than 1 %
REPORT_EVERY = 100  # steps
COUNTS = (1, 5, len(LANDMARKS))


class LatentPredictor(nn.Module):
    """Attention over one token of w and one token a point."""

    def __init__(self, w_dim: int) -> None:
        super().__init__()
        self.from_w = nn.Linear(w_dim, WIDTH)
        self.from_point = nn.Sequential(nn.Linear(4, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.attention = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.to_change = nn.Linear(WIDTH, w_dim)

    def forward(self, w: Tensor, handles: Tensor, targets: Tensor) -> Tensor:
        """w [B, D] in units of its standard deviation, points [B, K, 2] in [-1, 1] -> change of w [B, D]."""
        points = self.from_point(torch.cat([handles, 8 * (targets - handles)], dim=2))
        tokens = torch.cat([self.from_w(w)[:, None], points], dim=1)
        change: Tensor = self.to_change(self.attention(tokens)[:, 0])
        return change


@dataclass(frozen=True)
class Scale:
    """Of w over random samples, so that the network sees numbers about 1."""

    mean: Tensor  # [D]
    deviation: Tensor  # scalar


def measure_scale(generator: Generator, psi: float) -> Scale:
    z = torch.randn(4096, Z_DIM, generator=torch.Generator().manual_seed(0)).to(generator.device)
    w = generator.mapping.truncate(generator.mapping(z), psi)
    return Scale(w.mean(dim=0), (w - w.mean(dim=0)).square().mean().sqrt())


def train(generator: Generator, psi: float, path: Path, seen: Callable[[int, int, float], None]) -> LatentPredictor:
    """Train from scratch, always alike, and keep the weights and the curve of the loss beside them."""
    torch.manual_seed(0)
    scale, began, curve = measure_scale(generator, psi), time.monotonic(), []
    predictor = LatentPredictor(generator.config.w_dim).to(generator.device)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    total = 0.0
    for step in range(STEPS):
        with torch.no_grad():
            w, points = sample_pair(generator, psi, scale)
        chosen = torch.rand(len(LANDMARKS)).argsort()[: COUNTS[step % len(COUNTS)]]
        change = predictor(w[0], points[0][:, chosen], points[1][:, chosen])
        loss = F.mse_loss(w[0] + change, w[1])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        total += loss.item() / REPORT_EVERY
        if (step + 1) % REPORT_EVERY == 0:
            curve.append(total)
            seen(step + 1, STEPS, total)
            total = 0.0
    save_file(predictor.state_dict(), path)
    story = {"steps": STEPS, "batch": BATCH, "seconds": round(time.monotonic() - began), "loss": curve}
    path.with_suffix(".json").write_text(json.dumps(story))
    return predictor


def sample_pair(generator: Generator, psi: float, scale: Scale) -> tuple[list[Tensor], list[Tensor]]:
    """Two times B random samples: w [B, D] scaled, landmarks [B, K, 2] in [-1, 1]."""
    z = torch.randn(2 * BATCH, Z_DIM, device=generator.device)
    w = (generator.mapping.truncate(generator.mapping(z), psi) - scale.mean) / scale.deviation
    points = Anatomy(factors_of(z, psi=psi)).landmarks()
    return list(torch.split(w, BATCH)), list(torch.split(points, BATCH))


def one_pass(generator: Generator, psi: float, path: Path, seen: Callable[[int, int, float], None]) -> Method:
    """The row of the table; trains the predictor unless `path` holds it."""
    if path.exists():
        predictor = LatentPredictor(generator.config.w_dim)
        predictor.load_state_dict(load_file(path))
        predictor.to(generator.device)
    else:
        predictor = train(generator, psi, path, seen)
    scale = measure_scale(generator, psi)

    @torch.no_grad()
    def predict(generator: Generator, case: Case) -> Ending:
        began, size = time.perf_counter(), generator.config.resolution
        handles, targets = (
            torch.from_numpy((points + 0.5) * 2 / size - 1).to(case.start)[None] for points in (case.handles, case.targets)
        )
        w = (case.start[:, 0] - scale.mean) / scale.deviation
        changed = case.start.clone()
        changed[:, :SHAPE_ROWS] += predictor(w, handles, targets) * scale.deviation
        seconds = time.perf_counter() - began
        return Ending(w=changed, handles=np.array(case.targets), iterations=1, stop_reason="none", seconds=seconds)

    return Method(NAME, predict)
