"""The generators that a worker keeps in memory, the least recently used let go first."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelEntry, ModelManifest
from worker.edit.engine_setup import open_generator


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A model in memory."""

    sha256: str
    generator: Generator
    size_bytes: int


class ModelCache:
    """Generators in the memory of one device."""

    def __init__(self, device: torch.device, limit_bytes: int) -> None:
        """Keep nothing yet.

        Args:
            limit_bytes: of all models together; the one in use may be larger.
        """
        self.device = device
        self.limit_bytes = limit_bytes
        self.cached: OrderedDict[str, CachedModel] = OrderedDict()  # by name, the most recently used last
        self.lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the models in memory, the most recently used last."""
        return list(self.cached)

    def get(self, manifest: ModelManifest, model: ModelEntry) -> Generator:
        """Return the model's generator, read if need be; others make room for it. Raises CheckpointMissing, CheckpointDamaged."""
        with self.lock:
            cached = self.cached.pop(model.name, None)
            if cached is None or cached.sha256 != model.sha256:
                path = manifest.path(model)
                self.make_room(path.stat().st_size if path.exists() else 0)
                cached = self.load(manifest, model)
            self.cached[model.name] = cached
            return cached.generator

    def load(self, manifest: ModelManifest, model: ModelEntry) -> CachedModel:
        """Read a model, and render once: a process's first picture takes a second or two. Raises what `get` raises."""
        generator = open_generator(manifest, model, self.device)
        generator.render(generator.broadcast(generator.mapping.w_avg[None]))
        return CachedModel(sha256=model.sha256, generator=generator, size_bytes=size_of(generator))

    def make_room(self, size_bytes: int) -> None:
        """Let models go until so many bytes more fit within the limit."""
        while self.cached and sum(cached.size_bytes for cached in self.cached.values()) + size_bytes > self.limit_bytes:
            self.cached.popitem(last=False)

    def clear(self) -> None:
        """Give back all memory that can be given."""
        self.cached.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def size_of(generator: Generator) -> int:
    """Return the bytes of all tensors of a generator."""
    return sum(tensor.numel() * tensor.element_size() for tensor in generator.state_dict().values())
