"""The conversion of a checkpoint in a child process: whatever the file makes its reader do ends with the child.

The child (engine.checkpoints.conversion_child) has limits of memory and CPU time by the size of the file, no secrets in its
environment, and ends with its parent. It writes in a folder of its own, which is removed with all that is in it.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CheckpointDamaged, CheckpointMissing, CheckpointUnsupported
from engine.networks.config import GeneratorConfig
from engine.printable import printable

# A network of full size takes 4.5 times its file, and a second for 100 MB
BASE_MEMORY, MEMORY_PER_BYTE = 640 * 2**20, 6  # bytes
BASE_CPU_S, BYTES_PER_CPU_S = 8, 10 * 2**20
WORKSPACE = ".import-"  # what the names of folders begin with in which a child writes


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A network that has been converted: what it is, and where its files lie."""

    layout: str  # of the file that it was converted from
    config: GeneratorConfig
    generator: Path
    discriminator: Path | None
    peak_bytes: int  # memory that the conversion took, Python and libraries included


@dataclass(frozen=True, kw_only=True)
class ConversionStep:
    """What the child begins to do now; in the last step, what it has done."""

    phase: str
    conversion: Conversion | None = None


def memory_limit(file_bytes: int) -> int:
    """Return the bytes of address space that the conversion of a file of this size may take."""
    return BASE_MEMORY + MEMORY_PER_BYTE * file_bytes


def cpu_limit(file_bytes: int) -> int:
    """Return the seconds of CPU time that the conversion of a file of this size may take."""
    return BASE_CPU_S + file_bytes // BYTES_PER_CPU_S


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Yield a new folder inside `folder`, which is removed at the end; those that killed processes left go too."""
    for left in folder.glob(f"{WORKSPACE}*"):
        with suppress(OSError), locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=WORKSPACE, dir=folder))
    try:
        with locked(made, fcntl.LOCK_EX):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def locked(folder: Path, operation: int) -> Iterator[None]:
    """Hold the lock of a folder, which the kernel takes back when this process ends. Raises OSError if it cannot be had."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def convert_checkpoint(file: Path, generator: Path, discriminator: Path, *, bgr: bool = False) -> Iterator[ConversionStep]:
    """Convert a checkpoint of any layout into canonical files; yield each step, the last with the conversion.

    Args:
        generator, discriminator: what to write, in a workspace, since a child that is killed leaves what it has written.
        bgr: whether the generator's images are blue first.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointDamaged, CheckpointUnsupported: the file cannot be converted, or not within the limits; the message says why.
        OSError: the file cannot be read, or the canonical files cannot be written.
    """
    if not file.is_file():
        raise CheckpointMissing(f"there is no file {file.name}")
    size = file.stat().st_size
    with start_child([path.absolute() for path in (file, generator, discriminator)], size, bgr) as child:
        try:
            answer: dict[str, Any] = {}
            for line in child.stdout or ():
                answer = json.loads(line)
                if "phase" in answer:
                    yield ConversionStep(phase=answer["phase"])
        finally:
            child.kill()
    check_answer(answer, child.returncode, size)
    conversion = Conversion(
        layout=answer["layout"],
        config=GeneratorConfig(**answer["config"]),
        generator=generator,
        discriminator=discriminator if answer["discriminator"] else None,
        peak_bytes=answer["peak_bytes"],
    )
    yield ConversionStep(phase="done", conversion=conversion)


def start_child(paths: list[Path], size: int, bgr: bool) -> subprocess.Popen[bytes]:
    """Start the child; one thread, since each reserves memory that counts against the limit."""
    numbers = (memory_limit(size), cpu_limit(size), os.getpid())
    arguments = [*map(str, paths), "bgr" if bgr else "rgb", *map(str, numbers)]
    command = [sys.executable, "-P", "-W", "ignore", "-m", "engine.checkpoints.conversion_child", *arguments]
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    null = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null, env=environment)


def check_answer(answer: dict[str, Any], status: int, size: int) -> None:
    """Raise what convert_checkpoint raises unless the child's last answer is that of a conversion."""
    if "refused" in answer:
        error = CheckpointUnsupported if answer["kind"] == "unsupported" else CheckpointDamaged
        raise error(answer["refused"])
    if "unwritten" in answer:
        raise OSError(printable(answer["unwritten"]))
    if "layout" not in answer:
        raise CheckpointDamaged(explain_end(answer, status, size))


def explain_end(answer: dict[str, Any], status: int, size: int) -> str:
    """Return why a child has ended without an answer, in a sentence."""
    if status == -signal.SIGKILL:
        return "the process that converts the file was killed, perhaps since the machine lacks memory"
    if status == -signal.SIGXCPU:
        return f"converting the file takes more than {cpu_limit(size)} s of CPU time, the limit for a file of its size"
    if "crashed" in answer:
        return f"the file cannot be converted: {answer['crashed']}"
    return (
        f"the file cannot be converted: the process that reads it ended with {'signal' if status < 0 else 'status'} {abs(status)}"
    )
