"""A one-pass latent predictor in the manner of UserControllableLT (Endo 2022): w, handles and targets in, the change of w out.

It learns from pairs of random samples of the demo model, whose landmarks are known from their factors. From the w of the first
and the shifts of 1, 5 or all landmarks it predicts the first rows of the second's w: one pass, no loop, no tracking.
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
from benchmarks.quality.methods import EditedCase, Method
from engine.networks.stylegan2 import Generator

NAME = "one-pass predictor"
WIDTH = 128  # of a token
BATCH = 128
LEARNING_RATE = 1e-3
STEPS = 4_000  # over the last tenth the loss falls by less than 1 %
REPORT_EVERY = 100  # steps
COUNTS = (1, 5, len(LANDMARKS))


class LatentPredictor(nn.Module):
    """A transformer over one token for w and one token for each point."""

    def __init__(self, w_dim: int) -> None:
        super().__init__()
        self.from_w = nn.Linear(w_dim, WIDTH)
        self.from_point = nn.Sequential(nn.Linear(4, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.attention = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.to_change = nn.Linear(WIDTH, w_dim)

    def forward(self, w: Tensor, handles: Tensor, targets: Tensor) -> Tensor:
        """Return the change of w, [B, D].

        Args:
            w: [B, D] in units of its standard deviation.
            handles, targets: [B, K, 2] in [-1, 1].
        """
        points = self.from_point(torch.cat([handles, 8 * (targets - handles)], dim=2))
        tokens = torch.cat([self.from_w(w)[:, None], points], dim=1)
        change: Tensor = self.to_change(self.attention(tokens)[:, 0])
        return change


@dataclass(frozen=True)
class LatentScale:
    """Mean and deviation of w over random samples, so that the network sees numbers about 1."""

    mean: Tensor  # [D]
    deviation: Tensor  # scalar


def measure_scale(generator: Generator, psi: float) -> LatentScale:
    """Measure the scale over 4096 samples."""
    z = torch.randn(4096, Z_DIM, generator=torch.Generator().manual_seed(0)).to(generator.device)
    w = generator.mapping.truncate(generator.mapping(z), psi)
    return LatentScale(w.mean(dim=0), (w - w.mean(dim=0)).square().mean().sqrt())


def train(generator: Generator, psi: float, path: Path, report_step: Callable[[int, int, float], None]) -> LatentPredictor:
    """Train from scratch with fixed seeds; write the weights, and the curve of the loss beside them.

    Args:
        path: the file of the weights.
        report_step: called with the step, the number of steps and the mean loss since the last call.
    """
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
            report_step(step + 1, STEPS, total)
            total = 0.0
    save_file(predictor.state_dict(), path)
    history = {"steps": STEPS, "batch": BATCH, "seconds": round(time.monotonic() - began), "loss": curve}
    path.with_suffix(".json").write_text(json.dumps(history))
    return predictor


def sample_pair(generator: Generator, psi: float, scale: LatentScale) -> tuple[list[Tensor], list[Tensor]]:
    """Draw B pairs of random samples; return their w, two [B, D] scaled, and their landmarks, two [B, K, 2] in [-1, 1]."""
    z = torch.randn(2 * BATCH, Z_DIM, device=generator.device)
    w = (generator.mapping.truncate(generator.mapping(z), psi) - scale.mean) / scale.deviation
    points = Anatomy(factors_of(z, psi=psi)).landmarks()
    return list(torch.split(w, BATCH)), list(torch.split(points, BATCH))


def one_pass_method(generator: Generator, psi: float, path: Path, report_step: Callable[[int, int, float], None]) -> Method:
    """Return the predictor as a method; train it unless `path` holds its weights."""
    if path.exists():
        predictor = LatentPredictor(generator.config.w_dim)
        predictor.load_state_dict(load_file(path))
        predictor.to(generator.device)
    else:
        predictor = train(generator, psi, path, report_step)
    scale = measure_scale(generator, psi)

    @torch.no_grad()
    def predict(generator: Generator, case: Case) -> EditedCase:
        began, size = time.perf_counter(), generator.config.resolution
        handles, targets = (
            torch.from_numpy((points + 0.5) * 2 / size - 1).to(case.start)[None] for points in (case.handles, case.targets)
        )
        w = (case.start[:, 0] - scale.mean) / scale.deviation
        changed = case.start.clone()
        changed[:, :SHAPE_ROWS] += predictor(w, handles, targets) * scale.deviation
        seconds = time.perf_counter() - began
        return EditedCase(w=changed, handles=np.array(case.targets), iterations=1, stop_reason="none", seconds=seconds)

    return Method(NAME, predict)
