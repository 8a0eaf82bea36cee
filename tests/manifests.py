"""A checkpoints folder with small random models, for tests."""

import hashlib
from pathlib import Path

from engine.checkpoints.load import save_network
from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelEntry, ModelManifest
from tests.generators import slow_generator, tiny_generator

TINY = ModelEntry(
    name="tiny", file="tiny.safetensors", sha256="0" * 64, resolution=32, num_ws=8, w_dim=16, licence="CC0-1.0", layout="test"
)


def write_tiny_checkpoints(folder: Path) -> Path:
    """Write models: tiny; slow (a drag takes seconds); missing (no file); damaged (another hash)."""
    entries = [add_model(folder, "tiny", tiny_generator()), add_model(folder, "slow", slow_generator())]
    (folder / "damaged.safetensors").write_bytes(b"not a checkpoint")
    entries += [TINY.model_copy(update={"name": name, "file": f"{name}.safetensors"}) for name in ("missing", "damaged")]
    (folder / "manifest.toml").write_text("[models]\n")
    for entry in entries:
        ModelManifest(folder, {}).add(entry)
    return folder


def add_model(folder: Path, name: str, generator: Generator) -> ModelEntry:
    path = folder / f"{name}.safetensors"
    save_network(generator, path)
    config = generator.config
    shape = {"resolution": config.resolution, "num_ws": config.num_ws, "w_dim": config.w_dim}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return TINY.model_copy(update={"name": name, "file": path.name, "sha256": sha256, **shape})
