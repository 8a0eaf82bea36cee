"""How much memory a worker's jobs take, and how much there is."""

import re
from pathlib import Path

import torch

KIB = 1024
GROUP_LIMIT, GROUP_USED = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
SPARE = 1.5  # times what a job took so far


class Room:
    """Of one device, since it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = used_bytes(device)

    def fits(self, running: int) -> bool:
        """Whether one more job would fit beside so many, judged by what these took."""
        each = (used_bytes(self.device) - self.before) / running
        return free_bytes(self.device) >= SPARE * each


def used_bytes(device: torch.device) -> float:
    """By this process."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return told(Path("/proc/self/status"), "VmRSS")


def free_bytes(device: torch.device) -> float:
    """On the device; on a CPU what the machine has left, or the container if that is less. Unlimited where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    machine = told(Path("/proc/meminfo"), "MemAvailable") or float("inf")
    return min(machine, group_bytes())


def told(file: Path, name: str) -> float:
    """Bytes of a line like `VmRSS:  1234 kB`; 0 where there is none."""
    found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE) if file.exists() else None
    return KIB * int(found[1]) if found else 0.0


def group_bytes() -> float:
    """What the container has left."""
    limit = GROUP_LIMIT.read_text().strip() if GROUP_LIMIT.exists() else "max"
    return float("inf") if limit == "max" else int(limit) - int(GROUP_USED.read_text())
