"""Checkpoints on disk: tensors in safetensors, the generator's config as JSON in its metadata. Nothing in them is executed."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.config import GeneratorConfig
from engine.errors import CheckpointDamaged, CheckpointMissing
from engine.generator import Generator, channels_last


def save_generator(generator: Generator, path: Path) -> None:
    """Write tensors and config; the file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    save_file(tensors, part, metadata={"config": json.dumps(asdict(generator.config))})
    part.chmod(0o644)  # safetensors writes for its owner alone
    part.rename(path)


def load_generator(path: Path | str, *, device: torch.device | str = "cpu", sha256: str | None = None) -> Generator:
    """The generator of a checkpoint: frozen, in float32, ready to drag.

    Args:
        sha256: what the file's hash must be; None trusts the file.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointDamaged: it has another hash, cannot be read, or lacks a tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointMissing(f"checkpoint {path.name} is not in {path.parent}")
    if sha256 is not None:
        verify_hash(path, sha256)
    return channels_last(read_generator(path).eval().requires_grad_(False).to(device))


def verify_hash(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointDamaged(f"checkpoint {path.name} cannot be read: {error.strerror}") from error
    if found != sha256:
        raise CheckpointDamaged(f"checkpoint {path.name} has sha256 {found[:12]}..., the manifest says {sha256[:12]}...")


def read_generator(path: Path) -> Generator:
    try:
        config, tensors = read_tensors(path)
        generator = Generator(config)
        generator.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointDamaged(f"checkpoint {path.name} cannot be read: {reason}") from error
    return generator


def read_tensors(path: Path) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        config = GeneratorConfig(**json.loads((file.metadata() or {})["config"]))
        return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict: safe_open has no iterator
