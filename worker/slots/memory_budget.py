"""How much memory a worker's jobs take, and how much there is."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

KIB = 1024
CONTROL_GROUP = Path("/sys/fs/cgroup")  # the container's, where it has limits of its own
RESERVE = 1.5  # times what a job took so far


def used_bytes(device: torch.device) -> float:
    """Return the memory that this process uses on a device."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return read_bytes(Path("/proc/self/status"), "VmRSS")


def free_bytes(device: torch.device, control_group: Path = CONTROL_GROUP) -> float:
    """Return the memory that is left on a device; on a CPU what the machine has left, or the container if that is less.

    Unlimited where neither is known.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    machine = read_bytes(Path("/proc/meminfo"), "MemAvailable") or float("inf")
    return min(machine, container_bytes(control_group))


class MemoryBudget:
    """The memory of one device for jobs, since this object was made."""

    def __init__(
        self,
        device: torch.device,
        used: Callable[[torch.device], float] = used_bytes,
        free: Callable[[torch.device], float] = free_bytes,
    ) -> None:
        """Note what is in use without any job.

        Args:
            used, free: read the bytes of a device that this process uses, and that are left.
        """
        self.device = device
        self.used = used
        self.free = free
        self.used_before = used(device)

    def fits(self, running: int) -> bool:
        """Return whether one more job would fit beside so many, judged by what these took."""
        each = (self.used(self.device) - self.used_before) / running
        return self.free(self.device) >= RESERVE * each


def read_bytes(file: Path, name: str) -> float:
    """Return the bytes of a line like `VmRSS:  1234 kB`; 0 where there is none."""
    found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE) if file.exists() else None
    return KIB * int(found[1]) if found else 0.0


def container_bytes(control_group: Path) -> float:
    """Return what the container has left, not counting files that the kernel keeps until something else wants their memory."""
    limit = control_group / "memory.max"
    if not limit.exists() or limit.read_text().strip() == "max":
        return float("inf")
    used = int((control_group / "memory.current").read_text())
    kept = re.search(r"^inactive_file (\d+)$", (control_group / "memory.stat").read_text(), re.MULTILINE)
    return int(limit.read_text()) - used + (int(kept[1]) if kept else 0)
