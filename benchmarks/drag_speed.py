"""Measures a drag's step by this engine and by the published program, on networks of full size with random weights.

Needs torch, numpy and Pillow alone. `python -m benchmarks.drag_speed CASE` is the child that measures one case, alone in its
process, since peaks of memory are a process's.
"""

import importlib.util
import json
import math
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from benchmarks.child_programs import checkout_environment, module_command
from benchmarks.official_step import OfficialDrag
from engine.drag.cuda_graphs import CAPTURED_AFTER
from engine.drag.loop import make_batch, to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from engine.networks.config import GeneratorConfig
from engine.networks.stylegan2 import Generator, channels_last

Precision = Literal["float32", "bfloat16"]
WARM_UP = {"cpu": 2, "cuda": CAPTURED_AFTER + 3}  # steps that are not timed: on a GPU those before they are replayed
POINTS = 2
RATE_SHAPE = (1, 512, 64, 64)  # of the convolution that tells the machine's rate


@dataclass(frozen=True, kw_only=True)
class SpeedCase:
    """One program on one network: what a child process measures."""

    way: str  # official, or ours
    resolution: int
    mask: str = "none"  # none, paper, early
    dtype: Precision = "float32"
    together: int = 1  # drags that make each step together
    threads: int
    device: str = "cpu"

    @property
    def official(self) -> "SpeedCase":
        """Return the case to compare with: the published program knows one mask term, and one drag at a time."""
        return replace(self, way="official", mask="none" if self.mask == "none" else "paper", dtype="float32", together=1)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The figures of one case."""

    case: SpeedCase
    step_s: list[float]  # of each timed step, all drags together
    peak_bytes: int  # of memory, less what was in use before the first step
    gflop: float  # of one step of all its drags, convolutions and matrix products
    rate_gflops: float  # of a large convolution, in the same process

    @property
    def median_s(self) -> float:
        """Return the median time of a step of all drags together."""
        return statistics.median(self.step_s)

    @property
    def drag_s(self) -> float:
        """Return the time of a step for each of the drags that make it together."""
        return self.median_s / self.case.together

    @property
    def share(self) -> float:
        """Return the arithmetic's rate as a part of the machine's, 0 to 1."""
        return self.gflop / self.median_s / self.rate_gflops


def measure(cases: list[SpeedCase], rounds: int, steps: int, report_case: Callable[[SpeedCase], None]) -> list[Speed]:
    """Measure every case in each round, in processes of their own, and keep the best round of each.

    A slow minute of the machine then hits all cases alike.
    """
    found: dict[SpeedCase, Speed] = {}
    for _ in range(rounds):
        for case in cases:
            report_case(case)
            speed = measure_in_child(case, steps)
            earlier = found.get(case, speed)
            found[case] = min(speed, earlier, key=lambda one: one.median_s)
    return list(found.values())


def make_cases(
    resolutions: list[int], masks: list[str], dtypes: list[Precision], together: list[int], threads: int, device: str
) -> list[SpeedCase]:
    """Return the cases of this engine, and before them the official ones that they are compared with."""
    ours = [
        SpeedCase(way="ours", resolution=resolution, mask=mask, dtype=dtype, together=count, threads=threads, device=device)
        for resolution, mask, dtype, count in product(resolutions, masks, dtypes, together)
    ]
    return [*dict.fromkeys(case.official for case in ours), *ours]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A case of this engine beside the official one."""

    ours: Speed
    official: Speed

    @property
    def times_faster(self) -> float:
        """Return how many of this engine's steps fit into one official step."""
        return self.official.median_s / self.ours.drag_s

    @property
    def memory_share(self) -> float:
        """Return this engine's peak memory as a part of the official one's."""
        return self.ours.peak_bytes / self.official.peak_bytes


def compare(speeds: list[Speed]) -> list[Comparison]:
    """Pair every case of this engine with its official one."""
    by_case = {speed.case: speed for speed in speeds}
    ours = [speed for speed in speeds if speed.case.way == "ours"]
    return [Comparison(ours=speed, official=by_case[speed.case.official]) for speed in ours]


def write_report(speeds: list[Speed], out: Path) -> None:
    """Write drag-speed.json, and drag-speed.png where matplotlib is installed."""
    out.mkdir(parents=True, exist_ok=True)
    machine = {"device": device_name(speeds[0].case.device), "torch": torch.__version__, "points": POINTS}
    lines = [asdict(speed) | {"median_s": speed.median_s, "drag_s": speed.drag_s, "share": speed.share} for speed in speeds]
    (out / "drag-speed.json").write_text(json.dumps(machine | {"speeds": lines}, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib") is not None:
        plot(compare(speeds), out / "drag-speed.png")


def plot(comparisons: list[Comparison], file: Path) -> None:
    """Draw how many times as fast each case is, as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.8 * len(comparisons)), 4), layout="constrained")
    axes = figure.subplots()
    names = [bar_label(one.ours.case) for one in comparisons]
    bars = axes.bar(names, [one.times_faster for one in comparisons], color="#4477aa")
    axes.bar_label(bars, [f"{one.times_faster:.1f}x\n{1000 * one.ours.drag_s:.0f} ms" for one in comparisons], fontsize=8)
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_ylabel("times as fast as the official step")
    axes.tick_params(axis="x", labelsize=8)
    figure.savefig(file, dpi=120)


def bar_label(case: SpeedCase) -> str:
    """Return a case's name over several lines."""
    together = f"\n{case.together} together" if case.together > 1 else ""
    return f"{case.resolution} px\n{case.mask}\n{case.dtype}{together}"


def measure_in_child(case: SpeedCase, steps: int) -> Speed:
    """Measure a case in a process of its own."""
    arguments = json.dumps(asdict(case) | {"steps": steps})
    environment = checkout_environment() | {"OMP_NUM_THREADS": str(case.threads), "MALLOC_ARENA_MAX": "2"}
    command = module_command("benchmarks.drag_speed", arguments)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return Speed(case=case, **json.loads(done.stdout.splitlines()[-1]))


def measure_here(case: SpeedCase, steps: int) -> dict[str, object]:
    """Measure a case in this process and return the fields of a Speed but for the case."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    device = torch.device(case.device)
    generator = Generator(GeneratorConfig(resolution=case.resolution)).requires_grad_(False).to(device)
    if case.way == "ours":  # as they are loaded
        channels_last(generator)
    before = reset_peak(device)
    step = (official_steps if case.way == "official" else our_steps)(generator, case)
    warm_up = WARM_UP.get(device.type, 2)
    timed = [time_step(step, device) for _ in range(warm_up + steps)][warm_up:]
    peak = peak_bytes(device) - before
    with FlopCounterMode(display=False) as counter:
        next(step)
    rate = measure_machine_rate(device, getattr(torch, case.dtype))
    return {"step_s": timed, "peak_bytes": peak, "gflop": counter.get_total_flops() / 1e9, "rate_gflops": rate}


def packed_flop(_: list[int], weight: list[int], *__: object, out_shape: list[int], **___: object) -> int:
    """Count the operations of a packed convolution, which torch does not count by itself."""
    return 2 * out_shape[0] * math.prod(out_shape[2:]) * math.prod(weight)


def packed_transposed_flop(x: list[int], weight: list[int], *_: object, **__: object) -> int:
    """Count the operations of a packed transposed convolution."""
    return 2 * x[0] * math.prod(x[2:]) * math.prod(weight)


if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's stubs lack it
    register_flop_formula(torch.ops.mkldnn._convolution_pointwise)(packed_flop)
    register_flop_formula(torch.ops.mkldnn._convolution_transpose_pointwise)(packed_transposed_flop)


def handles_and_targets(resolution: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two handles and their targets, [2, 2] xy pixels each, too far apart to be reached."""
    handles = [(0.4, 0.4), (0.6, 0.5)]
    targets = [(0.7, 0.4), (0.6, 0.8)]
    return tuple(to_points([(x * resolution, y * resolution) for x, y in part]) for part in (handles, targets))  # type: ignore[return-value]


def movable(resolution: int) -> torch.Tensor:
    """Return a mask [R, R] that is True in the middle half of the width and height."""
    mask = torch.zeros(resolution, resolution, dtype=torch.bool)
    mask[resolution // 4 : -resolution // 4, resolution // 4 : -resolution // 4] = True
    return mask


def official_steps(generator: Generator, case: SpeedCase) -> Iterator[None]:
    """Make one step of the published program at each `next`."""
    fixed = None if case.mask == "none" else (~movable(case.resolution)).to(generator.device, generator.dtype)
    drag = OfficialDrag(generator, generator.map(seed=3, truncation_psi=0.7), *handles_and_targets(case.resolution), fixed)
    while True:
        drag.step()
        yield


def our_steps(generator: Generator, case: SpeedCase) -> Iterator[None]:
    """Make one step of this engine, for all drags together, at each `next`."""
    mask = None if case.mask == "none" else movable(case.resolution)
    options = DragOptions(mask_term="early" if case.mask == "early" else "paper", precision=case.dtype)
    starts = [generator.map(seed=3 + number, truncation_psi=0.7) for number in range(case.together)]
    runs = [DragRun(generator, start, *handles_and_targets(case.resolution), mask, options) for start in starts]
    together = make_batch(runs)
    while True:
        together.step()
        for run, update in zip(runs, together.updates(), strict=True):
            run.take_step(update)
        yield


def time_step(step: Iterator[None], device: torch.device) -> float:
    """Make the next step and return its seconds."""
    began = time.perf_counter()
    next(step)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def reset_peak(device: torch.device) -> int:
    """Reset the peak of memory and return the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return read_resident_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes that were in use since the reset."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else read_resident_bytes("VmHWM")


def read_resident_bytes(name: str) -> int:
    """Read VmRSS or VmHWM of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure_machine_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the GFLOP/s of a large convolution, the best of six."""
    x = torch.randn(RATE_SHAPE).to(device, dtype, memory_format=torch.channels_last)
    weight = torch.randn(512, 512, 3, 3).to(device, dtype, memory_format=torch.channels_last)

    def convolutions() -> Iterator[None]:
        while True:
            torch.nn.functional.conv2d(x, weight, padding=1)
            yield

    best = min(time_step(convolutions(), device) for _ in range(6))
    return 2 * 9 * 512 * x.numel() / best / 1e9


def device_name(device: str) -> str:
    """Return the name of the GPU or the processor."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def main() -> None:
    """Measure one case and print its figures as JSON."""
    arguments = json.loads(sys.argv[1])
    steps = arguments.pop("steps")
    print(json.dumps(measure_here(SpeedCase(**arguments), steps)))


if __name__ == "__main__":
    main()
