"""Measures what a large checkpoint costs: the time and memory of its import, the time in which a worker loads it."""

import hashlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoints.conversion import convert_checkpoint
from engine.checkpoints.load import load_generator
from engine.networks.config import GeneratorConfig


@dataclass(frozen=True)
class ImportCost:
    """The cost of one checkpoint's import."""

    layout: str
    file_bytes: int
    seconds: float
    peak_bytes: int  # of the process that imports, Python and libraries included
    load_s: float  # as a worker reads it: hash, tensors, layout in memory

    @property
    def memory_ratio(self) -> float:
        """Return the peak memory in units of the file's size."""
        return self.peak_bytes / self.file_bytes


def measure_import(layout: str, resolution: int) -> ImportCost:
    """Write a random network in this layout and import it as `dragqueue models import` does."""
    from benchmarks.writers import WRITERS
    from engine.networks.stylegan2 import Generator

    with tempfile.TemporaryDirectory(prefix="dragqueue-") as folder:
        file = Path(folder) / "random"
        WRITERS[layout](Generator(GeneratorConfig(resolution=resolution)).requires_grad_(False), file)
        began = time.perf_counter()
        *_, last = convert_checkpoint(file, file.with_suffix(".safetensors"), file.with_suffix(".discriminator.safetensors"))
        seconds = time.perf_counter() - began
        assert last.conversion is not None
        load_s = measure_load(last.conversion.generator)
        return ImportCost(layout, file.stat().st_size, seconds, last.conversion.peak_bytes, load_s)


def measure_load(checkpoint: Path) -> float:
    """Return the seconds in which a worker loads a checkpoint and verifies its hash."""
    with checkpoint.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    began = time.perf_counter()
    load_generator(checkpoint, sha256=sha256)
    return time.perf_counter() - began
