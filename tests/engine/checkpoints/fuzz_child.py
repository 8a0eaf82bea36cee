"""Reads checkpoint files in forked children that can do nothing else: for the property tests.

    python -m tests.engine.checkpoints.fuzz_child    # reads paths, writes an outcome for each as JSON, line by line

Each child may use 1 GB of memory and 10 s, and ends at once when it does what no reader needs: start a program, run code,
open a connection, import a module, write beside the file. Torch is not here.
"""

import codecs
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.checkpoints.budget import ReadingBudget
from engine.checkpoints.canonical import write_generator, write_networks
from engine.checkpoints.layouts import read_generator_file
from engine.errors import EngineError

MEMORY_BYTES = 2**30
LIMIT_S = 10  # of CPU time; a machine may have others to run meanwhile
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rmdir", "shutil.", "subprocess.", "socket.",
             "ctypes.", "exec", "compile", "import", "pickle.find_class", "code.__new__", "marshal.")  # fmt: skip


def main() -> None:
    assert "torch" not in sys.modules
    warm_up()
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        sys.stdout.write(f"{json.dumps(outcome(path))}\n")
        sys.stdout.flush()


def warm_up() -> None:
    """Let libraries import now what they import at first use."""
    for name in ("cp437", "raw_unicode_escape", "unicode_escape", "latin-1", "ascii"):  # zipfile's and the opcodes'
        codecs.lookup(name)
    with tempfile.TemporaryDirectory() as folder:
        for file in sorted((Path(__file__).parents[2] / "data").glob("sg2-64-*")):
            if file.suffix != ".npz":
                write_generator(read_generator_file(file), Path(folder) / "out.safetensors")


def outcome(path: Path) -> dict[str, Any]:
    """Return what reading a file came to (said) and took: operations and bytes counted, memory and time measured.

    What is said: read; refused: why; or what went wrong: crashed, killed, forbidden.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(read(path, writing))
    os.close(writing)
    return watch(child, reading)


def watch(child: int, reading: int) -> dict[str, Any]:
    until, said = time.monotonic() + 6 * LIMIT_S, b""
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
        part = os.read(reading, 65536) if ready else b""
        said += part
        if not part:
            break
    os.close(reading)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    answer = json.loads(said or b"{}")
    if status != 0 or not ready:
        answer["said"] = f"ended with status {status}: {answer.get('said')}"
    return answer | {"memory_bytes": used.ru_maxrss * 1024, "cpu_s": used.ru_utime + used.ru_stime}


def read(path: Path, writing: int) -> int:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    os.chdir(path.parent)
    sys.addaudithook(lambda event, arguments: stop(event, arguments, path.parent, writing))
    budget = ReadingBudget.for_file(path.stat().st_size)
    try:
        beside = path.with_suffix(".discriminator.safetensors")
        write_networks(read_generator_file(path, budget), path.with_suffix(".safetensors"), beside)
        said = "read"
    except EngineError as error:
        said = f"refused: {error}"
    except BaseException as error:  # a defect: the test shows it
        said = f"crashed: {type(error).__name__}: {str(error)[:500]}"
    spent = ReadingBudget.for_file(path.stat().st_size)
    answer = {"said": said, "operations": spent.operations_left - budget.operations_left}
    os.write(writing, json.dumps(answer | {"bytes": spent.bytes_left - budget.bytes_left}).encode())
    return 0


def stop(event: str, arguments: tuple[object, ...], folder: Path, writing: int) -> None:
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    elsewhere = writes and Path(os.fsdecode(arguments[0])).parent not in (folder, Path())
    if elsewhere or event.startswith(FORBIDDEN):
        os.write(writing, json.dumps({"said": f"forbidden: {event} {arguments!r}"[:500]}).encode())
        os._exit(2)


if __name__ == "__main__":
    main()
