"""Checkpoints on disk: tensors in safetensors, the generator's config as JSON in its metadata. Nothing in them is executed."""

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

N = TypeVar("N", bound=nn.Module)


def save_network(network: Generator | Encoder, path: Path) -> None:
    """Write tensors and config; the file appears whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(path) as part:
        save_file(tensors, part, metadata={"config": json.dumps(asdict(network.config))})
        part.chmod(0o644)  # safetensors writes for its owner alone


def load_generator(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = None) -> Generator:
    """The generator of a checkpoint: frozen, in float32, ready to drag.

    Args:
        sha256: what the file's hash must be; None trusts the file.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointDamaged: it has another hash, cannot be read, or lacks a tensor.
    """
    path = verified(Path(path), sha256)
    generator = read_network(path, lambda config: Generator(GeneratorConfig(**config)))
    return channels_last(generator.eval().requires_grad_(False).to(device))


def load_discriminator(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = None) -> Discriminator:
    """The discriminator that was imported with a generator: frozen, in float32. Raises as load_generator does."""
    path = verified(Path(path), sha256)
    discriminator = read_network(path, lambda config: Discriminator(DiscriminatorConfig(**config)))
    return discriminator.eval().requires_grad_(False).to(device)


def load_encoder(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = None) -> Encoder:
    """The encoder that was trained for a generator: frozen, in float32. Raises as load_generator does."""
    path = verified(Path(path), sha256)
    encoder = read_network(path, lambda config: Encoder(EncoderConfig(**config)))
    return encoder.eval().requires_grad_(False).to(device)


def verified(path: Path, sha256: str | None) -> Path:
    if not path.is_file():
        raise CheckpointMissing(f"checkpoint {path.name} is not in {path.parent}")
    if sha256 is not None:
        verify_hash(path, sha256)
    return path


def verify_hash(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointDamaged(f"checkpoint {path.name} cannot be read: {error.strerror}") from error
    if found != sha256:
        raise CheckpointDamaged(f"checkpoint {path.name} has sha256 {found[:12]}..., the manifest says {sha256[:12]}...")


def read_network(path: Path, build: Callable[[dict[str, Any]], N]) -> N:
    """The network that `build` makes of the file's config, with the file's tensors."""
    try:
        config, tensors = read_tensors(path)
        network = build(config)
        network.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointDamaged(f"checkpoint {path.name} cannot be read: {reason}") from error
    return network


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        config = json.loads((file.metadata() or {})["config"])
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict: safe_open has no iterator
