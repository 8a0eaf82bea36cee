"""How long the import of a large checkpoint takes, and how much memory: a random one of full size is written first."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.writers import WRITERS
from engine.config import GeneratorConfig
from engine.generator import Generator

FULL = GeneratorConfig(resolution=1024)  # 30 million parameters


@dataclass(frozen=True)
class ImportCost:
    layout: str
    file_bytes: int
    seconds: float
    peak_bytes: int  # of the process that imports, Python and libraries included

    @property
    def memory_ratio(self) -> float:
        return self.peak_bytes / self.file_bytes


def measure_import(layout: str, config: GeneratorConfig = FULL) -> ImportCost:
    """Import a random network of this layout in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="dragqueue-") as folder:
        file = Path(folder) / "random"
        WRITERS[layout](Generator(config).requires_grad_(False), file)
        command = [sys.executable, "-m", "cli.main", "models", "import", str(file), "--name", "random", "--checkpoints", folder]
        began = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"the import ended with exit code {process.returncode}")
        return ImportCost(layout, file.stat().st_size, time.perf_counter() - began, used.ru_maxrss * 1024)
