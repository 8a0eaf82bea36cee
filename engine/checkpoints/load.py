"""Checkpoints on disk: safetensors files with a network's config as JSON in their metadata. Nothing in them is executed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from engine.atomic_write import atomic_write
from engine.checkpoints.canonical import Shapes, discriminator_shapes, encoder_shapes, generator_shapes
from engine.errors import CheckpointDamaged, CheckpointMissing
from engine.networks.config import DiscriminatorConfig, EncoderConfig, GeneratorConfig
from engine.networks.discriminator import Discriminator
from engine.networks.encoder import Encoder
from engine.networks.stylegan2 import Generator, channels_last
from engine.printable import quote

Network = TypeVar("Network", bound=nn.Module)
Config = TypeVar("Config")


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
    generator = read_network(path, GeneratorConfig, generator_shapes, Generator)
    return channels_last(generator.eval().requires_grad_(False).to(device))


def load_discriminator(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = None) -> Discriminator:
    """Load the discriminator that was imported with a generator: frozen, in float32. Raise as load_generator does."""
    path = Path(path)
    verify_sha256(path, sha256)
    discriminator = read_network(path, DiscriminatorConfig, discriminator_shapes, Discriminator)
    return discriminator.eval().requires_grad_(False).to(device)


def load_encoder(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = None) -> Encoder:
    """Load the encoder that was trained for a generator: frozen, in float32. Raise as load_generator does."""
    path = Path(path)
    verify_sha256(path, sha256)
    encoder = read_network(path, EncoderConfig, encoder_shapes, Encoder)
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


def read_network(
    path: Path, parse: Callable[..., Config], shapes: Callable[[Config], Shapes], build: Callable[[Config], Network]
) -> Network:
    """Build a network of a file's config and load the file's tensors into it, once they are known to fit.

    Args:
        parse: makes the config of its fields.
        shapes: yields name and shape of every tensor of the network.
        build: makes the network of its config.

    Raises:
        CheckpointDamaged: the file cannot be read, has a config that no network has, or lacks a tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            if not isinstance(config, dict):
                raise ValueError("its config is no table")
            planned = dict(shapes(parsed := parse(**config)))
            check_shapes(file, planned)  # before the network takes memory
            network = build(parsed)
            network.load_state_dict({name: file.get_tensor(name) for name in planned})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
        raise CheckpointDamaged(f"checkpoint {path.name} cannot be read: {reason}") from error
    return network


def check_shapes(file: safe_open, planned: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless a file has exactly the tensors of a network, in their shapes."""
    names = set(file.keys())  # type: ignore[no-untyped-call]
    if names != planned.keys():
        raise ValueError(f"it lacks or has too many of {quote(min(names ^ planned.keys()))}")
    for name, expected in planned.items():
        shape = file.get_slice(name).get_shape()  # type: ignore[no-untyped-call]
        if tuple(shape) != expected:
            raise ValueError(f"{name} has the shape {shape}, expected {list(expected)}")
