"""Trains the demo checkpoint: G(z) learns to be the rendering of the factors behind z.

Coarse to fine through the skip outputs: blocks up to 32 px first, then 64, then 128. Half of the pairs mix rows, 0-5 of
w+ from z and the others from z': the picture to match has the shape and pose of z and the colors and light of z'. A
quarter is truncated by a random psi, so that the truth behind truncated samples is known too.

The mapping is not learned: w is a rotation of the normalized z, so that every factor has the same share of w. A learned
mapping gave the factors that change many pixels a thousand times the variance of brows and lips, which then stayed unlearned.

    python -m benchmarks.train_demo --out runs/demo --minutes 60            # goes on where runs/demo stands
    python -m benchmarks.train_demo --out runs/demo --init checkpoints/demo-faces.safetensors

Needs torch, numpy and Pillow alone (safetensors to export, or to begin with a checkpoint); CPU or CUDA. On a CPU, one
process of one thread for each core (--processes) is half again as fast as one process of many threads.
"""

import argparse
import copy
import importlib.util
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, distributed
from torch.multiprocessing.spawn import start_processes

from benchmarks.faces.factors import Z_DIM, factors_of
from benchmarks.faces.parts import LANDMARKS
from benchmarks.faces.renderer import Picture, render
from engine.networks.config import GeneratorConfig
from engine.networks.stylegan2 import FullyConnectedLayer, Generator, MappingNetwork, channels_last, to_pixels

CONFIG = GeneratorConfig(resolution=128, z_dim=Z_DIM, w_dim=Z_DIM, mapping_layers=1, channel_base=4096, channel_max=192)
SHAPE_ROWS = 6
STAGES = {32: 60_000, 64: 80_000, 128: 300_000}  # pictures seen at each resolution
LEARNING_RATE = 6e-3
FINAL_LEARNING_RATE = 1e-4
LINEAR_OFFSET = 4.0  # added to the rotated z, so that the mapping's leaky ReLU stays on its straight side
EMA_HALF_LIFE = 8_000  # pictures
FINEST, FINE, COARSE = 40.0, 20.0, 4.0  # weight of the pixels on landmarks


@dataclass
class Progress:
    """How far a training is."""

    pictures: int = 0
    seconds: float = 0.0
    loss: float = math.nan


class Trainer:
    """Trains the generator; its state can be saved and loaded."""

    def __init__(self, device: str, batch: int, init: Path | None) -> None:
        self.device = torch.device(device)
        self.batch = batch  # of all processes together
        self.generator = centered(new_generator() if init is None else load_weights(init))
        channels_last(self.generator.to(self.device)).train()
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.learned = [p for name, p in self.generator.synthesis.named_parameters() if not name.endswith("noise_strength")]
        for parameter in self.learned:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.learned, betas=(0.9, 0.99), eps=1e-8)
        self.progress = Progress()

    def stage(self) -> tuple[int, int]:
        """Return the current resolution and how many pictures its stage has seen."""
        seen = self.progress.pictures
        for resolution, length in STAGES.items():
            if seen < length or resolution == CONFIG.resolution:
                return resolution, seen
            seen -= length
        raise AssertionError("the last stage never ends")

    def learning_rate(self) -> float:
        """Return the learning rate: a warm-up in every stage, a cosine decay over the last."""
        resolution, seen = self.stage()
        rate = LEARNING_RATE
        if resolution == CONFIG.resolution:
            done = min(1.0, seen / STAGES[resolution])
            rate = FINAL_LEARNING_RATE + (LEARNING_RATE - FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * done))
        return rate * min(1.0, (seen + self.batch) / 4_000)

    def step(self) -> None:
        """Train on one batch, shared among all processes."""
        started = time.monotonic()
        resolution, _ = self.stage()
        count = self.batch // processes()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        z, z_color, psi = self.sample(count)
        with torch.no_grad():
            truth = render(factors_of(z, z_color, psi), resolution, chunk=16 if self.device.type == "cpu" else count)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            images = self.paired_images(z, z_color, psi, resolution)
        loss = reconstruction_loss(images, truth)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        average_over_processes([p.grad for p in self.learned if p.grad is not None])
        self.optimizer.step()
        self.update_average()
        self.progress.pictures += self.batch
        elapsed = torch.tensor(time.monotonic() - started)
        average_over_processes([elapsed])  # one clock, so that all stop together
        self.progress.seconds += elapsed.item()
        self.progress.loss = loss.item()

    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw z [N, Z_DIM], z of the colors [N, Z_DIM] and psi [N, 1]."""
        z = torch.randn(count, Z_DIM, device=self.device)
        mixed = torch.rand(count, 1, device=self.device) < 0.5
        z_color = torch.where(mixed, torch.randn_like(z), z)
        truncated = torch.rand(count, 1, device=self.device) < 0.25
        return (
            z,
            z_color,
            torch.where(truncated, torch.rand(count, 1, device=self.device), torch.ones(count, 1, device=self.device)),
        )

    def paired_images(self, z: Tensor, z_color: Tensor, psi: Tensor, resolution: int) -> Tensor:
        """Generate pictures [N, 3, R, R] with the shape of z and the colors of z_color."""
        shape, color = (psi * centered_w(self.generator.mapping, part) for part in (z, z_color))
        ws = torch.stack([shape] * SHAPE_ROWS + [color] * (CONFIG.num_ws - SHAPE_ROWS), dim=1)
        return self.generator.images(ws, until=resolution, noise_mode="none")

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the exponential average towards the current weights."""
        decay = 0.5 ** (self.batch / EMA_HALF_LIFE)
        for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)

    def save(self, folder: Path) -> None:
        """Write the state and export the checkpoint."""
        state = {"generator": self.generator.state_dict(), "average": self.average.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "progress": asdict(self.progress)}
        torch.save(state, folder / "state.pt.part")
        (folder / "state.pt.part").rename(folder / "state.pt")
        export(uncentered(self.average), folder / "demo-faces.safetensors")

    def load(self, folder: Path) -> None:
        """Continue from a saved state."""
        state = torch.load(folder / "state.pt", weights_only=True, map_location=self.device)
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])


@torch.no_grad()
def rotate(mapping: MappingNetwork) -> None:
    """Make the mapping w = sqrt(2) (rotated z + LINEAR_OFFSET), linear but for one z in ten thousand."""
    layer = cast(FullyConnectedLayer, mapping.get_submodule("fc0"))
    rotation, _ = torch.linalg.qr(torch.randn(Z_DIM, Z_DIM, generator=torch.Generator().manual_seed(0)))
    layer.weight.copy_(rotation / layer.weight_gain)
    layer.bias.fill_(LINEAR_OFFSET / layer.bias_gain)
    mapping.w_avg.fill_(math.sqrt(2) * LINEAR_OFFSET)


def centered_w(mapping: MappingNetwork, z: Tensor) -> Tensor:
    """Return the w [B, w_dim] that training sees for z [B, Z_DIM]: each number of mean 0 and variance 1."""
    centered: Tensor = (mapping(z) - mapping.w_avg) / math.sqrt(2)
    return centered


@torch.no_grad()
def centered(generator: Generator) -> Generator:
    """Change the synthesis, in place, to take latents (w - w_avg) / sqrt(2): the mean then hides no difference."""
    for _, _, layer in generator.synthesis.layers():
        affine = layer.affine
        affine.bias.add_(affine.weight @ generator.mapping.w_avg * affine.weight_gain)
        affine.weight.mul_(math.sqrt(2))
    return generator


@torch.no_grad()
def uncentered(generator: Generator) -> Generator:
    """Return a copy that takes w as the mapping gives it: the inverse of `centered`."""
    generator = copy.deepcopy(generator)
    for _, _, layer in generator.synthesis.layers():
        affine = layer.affine
        affine.weight.div_(math.sqrt(2))
        affine.bias.sub_(affine.weight @ generator.mapping.w_avg * affine.weight_gain)
    return generator


def new_generator() -> Generator:
    """Make an untrained generator with the rotating mapping."""
    generator = Generator(CONFIG)
    rotate(generator.mapping)
    return generator


def load_weights(path: Path) -> Generator:
    """Load a checkpoint to continue from."""
    from engine.checkpoints.load import load_generator

    return load_generator(path)


def export(generator: Generator, path: Path) -> None:
    """Write the checkpoint, where safetensors is installed; state.pt holds the same weights."""
    if importlib.util.find_spec("safetensors") is not None:
        from engine.checkpoints.load import save_network

        save_network(generator, path)


def processes() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def average_over_processes(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in place."""
    if processes() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor) / processes())
        start += tensor.numel()


def reconstruction_loss(images: Tensor, truth: Picture) -> Tensor:
    """Return the loss of pictures [B, 3, S, S]: L1 and L2 over a pyramid, L1 of gradients, weighted around landmarks."""
    target = truth.images
    weight = landmark_weight(truth.landmarks, target.shape[-1])  # [B, 1, S, S]
    loss = images.new_zeros([])
    while target.shape[-1] >= 8:
        error = images - target
        loss = loss + (weight * (error.abs() + 2 * error.square())).mean()
        for axis in (2, 3):
            loss = loss + 0.5 * (weight.narrow(axis, 1, weight.shape[axis] - 1) * error.diff(dim=axis).abs()).mean()
        images, target, weight = (F.avg_pool2d(map_, 2) for map_ in (images, target, weight))
    return loss


def landmark_weight(landmarks: Tensor, size: int) -> Tensor:
    """Return weights [B, 1, S, S]: 1 far from every landmark, more within about 3 % of the width around them."""
    line = torch.arange(size, device=landmarks.device, dtype=landmarks.dtype)
    sigma = 0.03 * size
    across = torch.exp(-0.5 * ((line - landmarks[..., :1]) / sigma).square())  # [B, K, S]
    down = torch.exp(-0.5 * ((line - landmarks[..., 1:]) / sigma).square())
    strength = landmarks.new_tensor([landmark_strength(name) for name in LANDMARKS])
    near = torch.einsum("bky,bkx,k->byx", down, across, strength).clamp(max=FINEST)
    return (1 + near)[:, None]


def landmark_strength(name: str) -> float:
    """Return a landmark's weight: thin and pale ones cost little when they are missing, so they weigh more."""
    if name in ("mouth_left", "mouth_right"):
        return FINEST
    return FINE if name.startswith(("mouth", "lip", "brow")) else COARSE


@torch.no_grad()
def evaluate(generator: Generator, resolution: int, count: int = 128) -> float:
    """Return the mean PSNR in dB over held-out z's (images in [0, 1])."""
    z = torch.randn(count, Z_DIM, generator=torch.Generator().manual_seed(123)).to(generator.device)
    truth = render(factors_of(z), resolution).images
    images = [generator.images(generator.broadcast(generator.mapping(part)), until=resolution) for part in torch.split(z, 16)]
    error = ((torch.cat(images).clamp(-1, 1) - truth) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def draw_sheet(generator: Generator, resolution: int, path: Path) -> None:
    """Draw twelve held-out pairs: the generator's picture above the rendering."""
    z = torch.randn(12, Z_DIM, generator=torch.Generator().manual_seed(321)).to(generator.device)
    images = generator.images(generator.broadcast(generator.mapping(z)), until=resolution)
    both = torch.cat([images, render(factors_of(z), resolution).images])
    rows = to_pixels(both).reshape(2, 12, resolution, resolution, 3).transpose(0, 2, 1, 3, 4)
    Image.fromarray(rows.reshape(2 * resolution, 12 * resolution, 3)).save(path)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing run goes on")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to train now")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--processes", type=int, default=1, help="of one thread each, on a CPU")
    parser.add_argument("--init", type=Path, help="start a new run from these weights, at full size")
    parser.add_argument("--report-every", type=float, default=60.0, help="seconds between log lines")
    return parser


def main() -> None:
    """Train in one process or in several."""
    options = make_parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.processes == 1:
        train(0, options)
    else:
        start_processes(train_together, args=(options,), nprocs=options.processes)  # type: ignore[no-untyped-call]


def train_together(rank: int, options: argparse.Namespace) -> None:
    """Train in one of several processes, which learn the same weights from different pictures."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rendezvous = options.out / f"rendezvous-{os.getppid()}"
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous.resolve()}", rank=rank, world_size=options.processes)
    train(rank, options)
    distributed.destroy_process_group()


def train(rank: int, options: argparse.Namespace) -> None:
    """Train until the minutes are over; the first process reports."""
    torch.manual_seed(0)  # every process begins with the same weights
    trainer = Trainer(options.device, options.batch, options.init)
    if (options.out / "state.pt").exists():
        trainer.load(options.out)
    elif options.init is not None:
        trainer.progress.pictures = sum(STAGES.values()) - STAGES[CONFIG.resolution]
    torch.manual_seed(trainer.progress.pictures + rank)  # and draws other pictures
    seconds, next_report = trainer.progress.seconds + options.minutes * 60, trainer.progress.seconds + options.report_every
    while trainer.progress.seconds < seconds:
        trainer.step()
        if trainer.progress.seconds >= next_report:
            next_report += options.report_every
            if rank == 0:
                report(trainer, options.out)
    if rank == 0:
        report(trainer, options.out)


def report(trainer: Trainer, out: Path) -> None:
    """Save, evaluate, append a line to the log, draw a sheet."""
    resolution, _ = trainer.stage()
    trainer.save(out)
    generator = uncentered(trainer.average)
    line = asdict(trainer.progress) | {"resolution": resolution, "psnr_db": round(evaluate(generator, resolution), 2)}
    line |= {"learning_rate": round(trainer.learning_rate(), 6)}
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
    draw_sheet(generator, resolution, out / "sheet.png")


if __name__ == "__main__":
    main()
