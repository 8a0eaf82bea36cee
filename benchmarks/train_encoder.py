"""Trains the demo checkpoint's encoder on drawings: z drawn at random, the picture in, the generator's w of z out.

    python -m benchmarks.train_encoder --out runs/encoder --minutes 30       # goes on where runs/encoder stands

Writes encoder.safetensors, state.pt and log.jsonl (PSNR of G(guess) against held-out drawings, in dB).
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import training
from benchmarks.faces.factors import Z_DIM, factors_of
from benchmarks.faces.renderer import render
from benchmarks.training import Recipe, Sample, main, worsen
from engine.checkpoints.load import load_generator, save_network
from engine.networks.config import EncoderConfig
from engine.networks.encoder import Encoder
from engine.networks.stylegan2 import Generator

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "demo-faces.safetensors"
PICTURES = 60_000
HELD_OUT = 64


class EncoderTask:
    """The task of an encoder: to guess the w of one generator's pictures."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.drawings = held_out()

    def encoder(self) -> Encoder:
        """Make an untrained encoder with the generator's mean and spread of w."""
        config = self.generator.config
        encoder = Encoder(EncoderConfig(resolution=config.resolution, w_dim=config.w_dim))
        encoder.w_avg.copy_(self.generator.mapping.w_avg)
        w = self.generator.mapping(torch.randn(4096, config.z_dim, generator=torch.Generator().manual_seed(1)))
        encoder.w_std.copy_((w - encoder.w_avg).square().mean().sqrt())
        return encoder

    def loss(self, network: nn.Module, sample: Sample) -> Tensor:
        """Return the mean squared error of w, in units of its spread."""
        mapping = self.generator.mapping
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            w = mapping.w_avg + sample.psi * (mapping(sample.z) - mapping.w_avg)
        guess = network(worsen(sample.picture.images).contiguous(memory_format=torch.channels_last))
        assert isinstance(network.w_std, Tensor)
        return F.mse_loss(guess / network.w_std, w / network.w_std)

    @torch.no_grad()
    def judge(self, network: nn.Module) -> dict[str, float]:
        """Measure how well the generator draws held-out drawings from the guessed w."""
        images = self.generator.images(self.generator.broadcast(network(self.drawings))).clamp(-1, 1)
        error = (images - self.drawings).square().mean(dim=(1, 2, 3)) / 4
        return {"psnr_db": (-10 * error.log10()).median().item()}


def held_out() -> Tensor:
    """Draw the pictures [N, 3, 128, 128] that training does not use."""
    z = torch.randn(HELD_OUT, Z_DIM, generator=torch.Generator().manual_seed(777))
    return render(factors_of(z), 128).images


def export(network: nn.Module, folder: Path) -> None:
    """Write the weights."""
    assert isinstance(network, Encoder)
    save_network(network, folder / "encoder.safetensors")


def build(pictures: int) -> Recipe:
    """Make the recipe for a training of so many pictures."""
    task = EncoderTask(load_generator(CHECKPOINT))
    return Recipe(
        network=task.encoder(), loss=task.loss, judge=task.judge, export=export, learning_rate=2e-3, mixed=False,
        pictures=pictures,
    )  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    return training.make_parser(__doc__, PICTURES)


if __name__ == "__main__":
    main(make_parser().parse_args(), build)
