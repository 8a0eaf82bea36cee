"""Checkpoints on disk: safetensors files with a network's config as JSON in their metadata. Nothing in them is executed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.atomic_write import atomic_write
from engine.errors import CheckpointDamaged, CheckpointMissing
from engine.networks.config import DiscriminatorConfig, EncoderConfig, GeneratorConfig
from engine.networks.discriminator import Discriminator
from engine.networks.encoder import Encoder
from engine.networks.stylegan2 import Generator, channels_last

Network = TypeVar("Network", bound=nn.Module)


def save_network(network: Generator | Encoder, path: Path) -> None:
    """Write tensors and config; the file appears whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(path) as part:
        save_file(tensors, part, metadata={"config": json.dumps(asdict(network.config))})
        part.chmod(0o644)  # safetensors writes for its owner alone


def load_generator(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = None) -> Generator:
    """Load a generator: frozen, in float32, laid out for speed.

    Args:
        sha256: the hash that the file must have; None does not check it.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointDamaged: the file has another hash, cannot be read, or lacks a tensor.
    """
    path = Path(path)
    verify_sha256(path, sha256)
    generator = read_network(path, lambda config: Generator(GeneratorConfig(**config)))
    return channels_last(generator.eval().requires_grad_(False).to(device))


def load_discriminator(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = None) -> Discriminator:
    """Load the discriminator that was imported with a generator: frozen, in float32. Raise as load_generator does."""
    path = Path(path)
    verify_sha256(path, sha256)
    discriminator = read_network(path, lambda config: Discriminator(DiscriminatorConfig(**config)))
    return discriminator.eval().requires_grad_(False).to(device)


def load_encoder(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = None) -> Encoder:
    """Load the encoder that was trained for a generator: frozen, in float32. Raise as load_generator does."""
    path = Path(path)
    verify_sha256(path, sha256)
    encoder = read_network(path, lambda config: Encoder(EncoderConfig(**config)))
    return encoder.eval().requires_grad_(False).to(device)


def verify_sha256(path: Path, sha256: str | None) -> None:
    """Check that a checkpoint is there, and that it has the hash unless that is None.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointDamaged: the file has another hash, or cannot be read.
    """
    if not path.is_file():
        raise CheckpointMissing(f"checkpoint {path.name} is not there")
    if sha256 is None:
        return
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointDamaged(f"checkpoint {path.name} cannot be read: {error.strerror}") from error
    if found != sha256:
        raise CheckpointDamaged(f"checkpoint {path.name} has sha256 {found[:12]}..., the manifest says {sha256[:12]}...")


def read_network(path: Path, build: Callable[[dict[str, Any]], Network]) -> Network:
    """Build a network of a file's config and load the file's tensors into it.

    Args:
        build: makes the network of its config.

    Raises:
        CheckpointDamaged: the file cannot be read, or lacks a tensor.
    """
    try:
        config, tensors = read_checkpoint(path)
        network = build(config)
        network.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointDamaged(f"checkpoint {path.name} cannot be read: {reason}") from error
    return network


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors of a file."""
    with safe_open(path, framework="pt") as file:
        config = json.loads((file.metadata() or {})["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict: safe_open has no iterator
