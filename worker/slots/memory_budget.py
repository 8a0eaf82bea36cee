"""How much memory a worker's jobs take, and how much there is."""

import re
from pathlib import Path

import torch

KIB = 1024
GROUP = Path("/sys/fs/cgroup")  # the container's, where it has limits of its own
SPARE = 1.5  # times what a job took so far


class MemoryBudget:
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
    """What the container has left; files that the kernel keeps in memory only until something else wants it are not in use."""
    limit = GROUP / "memory.max"
    if not limit.exists() or limit.read_text().strip() == "max":
        return float("inf")
    used = int((GROUP / "memory.current").read_text())
    kept = re.search(r"^inactive_file (\d+)$", (GROUP / "memory.stat").read_text(), re.MULTILINE)
    return int(limit.read_text()) - used + (int(kept[1]) if kept else 0)
