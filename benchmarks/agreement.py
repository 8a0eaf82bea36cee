"""Measures whether drags that make their steps together, or in bfloat16, end as they do alone in float32.

python -m benchmarks.agreement --drags 100 --slots 16
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.quality.cases import Case, landmark_cases
from benchmarks.quality.methods import service_options
from benchmarks.quality.rulers import LandmarkRuler
from engine.drag.loop import make_batch, steps, stop_reason, to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from engine.errors import DragDiverged
from engine.networks.config import Precision
from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelManifest
from jobs.settings import REPOSITORY
from worker.edit.engine_setup import choose_device, open_generator

MODEL = "demo-faces"


@dataclass(frozen=True)
class FinalDistance:
    """How a drag ended."""

    reached: bool
    distance_px: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The figures of many drags, each made alone in float32 and in another way; pixels as the tracker sees them."""

    drags: int
    slots: int
    precision: Precision
    agree_percent: float  # in reaching the target or not
    median_px: tuple[float, float]  # alone in float32, the other way
    p95_px: tuple[float, float]
    seconds: tuple[float, float]


def compare(count: int, slots: int, preset: str, precision: Precision, seed: int, console: Console) -> Agreement:
    """Drag one landmark in each case with the options of the preset's jobs: alone in float32, then in slots in a precision."""
    manifest = ModelManifest.load(REPOSITORY / "checkpoints")
    model = manifest.get(MODEL)
    generator = open_generator(manifest, model, choose_device("auto"))
    cases = list(landmark_cases(LandmarkRuler(generator), model.defaults.truncation_psi, count, 1, seed))
    options = replace(service_options(model, 1, preset=preset), max_iterations=100, precision="float32")
    began = time.perf_counter()
    plain = [drag_alone(generator, case, options) for case in track(cases, "alone, in float32", console=console)]
    between = time.perf_counter()
    changed = replace(options, precision=precision)
    others = dict(
        track(drag_in_slots(generator, cases, changed, slots), f"in {slots} slots, in {precision}", count, console=console)
    )
    seconds = between - began, time.perf_counter() - between
    return summarize(plain, [others[case.index] for case in cases], slots, precision, seconds)


def summarize(
    plain: list[FinalDistance], others: list[FinalDistance], slots: int, precision: Precision, seconds: tuple[float, float]
) -> Agreement:
    """Compare the drags of the two ways pair by pair."""
    both = [[one.distance_px for one in distances] for distances in (plain, others)]
    (median, other_median), (p95, other_p95) = ([float(np.percentile(one, at)) for one in both] for at in (50, 95))
    agree = [one.reached == other.reached for one, other in zip(plain, others, strict=True)]
    return Agreement(
        drags=len(plain), slots=slots, precision=precision, agree_percent=100 * sum(agree) / len(agree),
        median_px=(median, other_median), p95_px=(p95, other_p95), seconds=seconds,
    )  # fmt: skip


def start_drag(generator: Generator, case: Case, options: DragOptions) -> DragRun:
    """Return a case's drag before its first step."""
    return DragRun(generator, case.start, to_points(case.handles), to_points(case.targets), None, options)


def drag_alone(generator: Generator, case: Case, options: DragOptions) -> FinalDistance:
    """Drag one case by itself."""
    *_, result = steps(start_drag(generator, case, options))
    return FinalDistance(result.stop_reason == "reached", result.distance_px)


def drag_in_slots(
    generator: Generator, cases: list[Case], options: DragOptions, slots: int
) -> Iterator[tuple[int, FinalDistance]]:
    """Drag cases together and yield each one's index and end; the next case takes its slot."""
    waiting, running = iter(cases), dict[int, DragRun]()
    while True:
        for case in waiting:
            running[case.index] = start_drag(generator, case, options)
            if len(running) == slots:
                break
        if not running:
            return
        together = make_batch(list(running.values()))
        computed = zip(list(running), together.step(), together.updates(), strict=True)
        for index, step, update in computed:
            if isinstance(step, DragDiverged):
                raise step
            run = running[index]
            run.record(step)
            reason = stop_reason(run, step)
            if reason and run.best is not None:
                yield index, FinalDistance(reason == "reached", run.best.distance_px)
                del running[index]
            else:
                run.take_step(update)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--drags", type=int, default=100)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--preset", choices=["default", "fast", "paper"], default="default")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Compare the drags and print the figures as JSON."""
    given = make_parser().parse_args()
    found = compare(given.drags, given.slots, given.preset, given.precision, given.seed, Console(stderr=True))
    print(json.dumps(asdict(found) | {"threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
