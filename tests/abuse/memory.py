"""The memory of the API's process, and apart from it that of its children, the decoders."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 0.05


@dataclass
class Memory:
    """The most that was seen."""

    api_mb: float = 0.0
    children_mb: float = 0.0  # of all at once
    child_mb: float = 0.0  # of the largest

    def sample(self, pid: int) -> None:
        """Look once."""
        children = [resident_mb(child) for child in child_pids(pid)]
        self.api_mb = max(self.api_mb, resident_mb(pid))
        self.children_mb = max(self.children_mb, sum(children))
        self.child_mb = max(self.child_mb, *children, 0.0)


def resident_mb(pid: int) -> float:
    """Return a process's resident memory; 0 when it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def child_pids(pid: int) -> list[int]:
    """Return the children that any thread of the process has started."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def used_cpu_s(pid: int) -> float:
    """Return the CPU time of a process; 0 when it has ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100
    return 0.0


@asynccontextmanager
async def watching(pid: int) -> AsyncIterator[Memory]:
    """Look at the memory of a process at short intervals while the context is open."""
    memory = Memory()

    async def look() -> None:
        while True:
            memory.sample(pid)
            await asyncio.sleep(INTERVAL_S)

    task = asyncio.create_task(look())
    try:
        yield memory
    finally:
        task.cancel()
        memory.sample(pid)
