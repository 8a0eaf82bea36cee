"""The generators that a worker keeps in memory, the least recently used let go first."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelEntry, ModelManifest
from worker.edit.drag import open_generator


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A model in memory."""

    sha256: str
    generator: Generator
    size_bytes: int


class ModelCache:
    def __init__(self, device: torch.device, limit_bytes: int) -> None:
        self.device = device
        self.limit_bytes = limit_bytes
        self.warm: OrderedDict[str, CachedModel] = OrderedDict()  # the most recently used last
        self.getting = threading.Lock()

    def names(self) -> list[str]:
        return list(self.warm)

    def get(self, manifest: ModelManifest, model: ModelEntry) -> Generator:
        """The model's generator, read if need be; others make room for it. Raises CheckpointMissing, CheckpointDamaged."""
        with self.getting:
            return self.get_alone(manifest, model)

    def get_alone(self, manifest: ModelManifest, model: ModelEntry) -> Generator:
        known = self.warm.pop(model.name, None)
        if known is None or known.sha256 != model.sha256:
            self.make_room(manifest.path(model).stat().st_size if manifest.path(model).exists() else 0)
            generator = open_generator(manifest, model, self.device)
            generator.render(generator.broadcast(generator.mapping.w_avg[None]))  # a process's first takes a second or two
            known = CachedModel(sha256=model.sha256, generator=generator, size_bytes=size_of(generator))
        self.warm[model.name] = known
        return known.generator

    def make_room(self, size_bytes: int) -> None:
        while self.warm and sum(warm.size_bytes for warm in self.warm.values()) + size_bytes > self.limit_bytes:
            self.warm.popitem(last=False)

    def clear(self) -> None:
        """Give back all memory that can be given."""
        self.warm.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def size_of(generator: Generator) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in generator.state_dict().values())
