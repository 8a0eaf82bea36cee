"""Converts one checkpoint under limits; engine.checkpoints.conversion starts this program and reads its answers.

    python -m engine.checkpoints.conversion_child FILE GENERATOR DISCRIMINATOR rgb|bgr MEMORY_BYTES CPU_S PARENT

It writes a line of JSON at each step, and one for the end. Torch is not here.
"""

import ctypes
import json
import os
import re
import resource
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.checkpoints.canonical import write_networks
from engine.checkpoints.layouts import read_generator_file
from engine.errors import CheckpointUnsupported, EngineError

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Limit this process, then convert."""
    file, generator, discriminator, channel_order, memory_bytes, cpu_s, parent = sys.argv[1:]
    limit(int(memory_bytes), int(cpu_s), int(parent))
    try:
        convert(Path(file), Path(generator), Path(discriminator), bgr=channel_order == "bgr")
    except EngineError as error:
        say(refused=str(error), kind="unsupported" if isinstance(error, CheckpointUnsupported) else "damaged")
    except OSError as error:
        say(unwritten=str(error))
    except Exception as error:  # a defect, which must not show as a traceback
        say(crashed=f"{type(error).__name__}: {error}"[:300])


def limit(memory_bytes: int, cpu_s: int, parent: int) -> None:
    """Set the limits of this process, and let it end with its parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    for kind, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))  # the first ends it by SIGXCPU, which tells the parent why


def convert(file: Path, generator: Path, discriminator: Path, *, bgr: bool) -> None:
    """Convert the file, and say each step."""
    say(phase="reading")
    found = read_generator_file(file)
    say(phase="converting")
    config = write_networks(found, generator, discriminator, bgr=bgr)
    has_discriminator = found.discriminator is not None
    say(layout=found.layout, config=asdict(config), discriminator=has_discriminator, peak_bytes=peak_memory())


def peak_memory() -> int:
    """Return the most memory that this process has had, in bytes; getrusage would count the parent's."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 0 if peak is None else int(peak[1]) * 1024


def say(**answer: Any) -> None:
    """Write a line of JSON."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
