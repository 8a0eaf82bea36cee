"""Whether drags that make their steps together, or in bfloat16, end as they do alone in float32.

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
from worker.edit.drag import choose_device, open_generator

MODEL = "demo-faces"


@dataclass(frozen=True)
class Ending:
    reached: bool
    distance_px: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of many drags made in two ways; pixels as the tracker sees them."""

    drags: int
    slots: int
    precision: Precision
    agree_percent: float  # in reaching the target or not
    median_px: tuple[float, float]  # alone in float32, the other way
    p95_px: tuple[float, float]
    seconds: tuple[float, float]


def compare(count: int, slots: int, preset: str, precision: Precision, seed: int, console: Console) -> Agreement:
    """Drags of one landmark each, as a job of the preset makes them."""
    manifest = ModelManifest.load(REPOSITORY / "checkpoints")
    model = manifest.get(MODEL)
    generator = open_generator(manifest, model, choose_device("auto"))
    cases = list(landmark_cases(LandmarkRuler(generator), model.defaults.truncation_psi, count, 1, seed))
    options = replace(service_options(model, 1, preset=preset), max_iterations=100, precision="float32")
    began = time.perf_counter()
    plain = [alone(generator, case, options) for case in track(cases, "alone, in float32", console=console)]
    between = time.perf_counter()
    changed = replace(options, precision=precision)
    others = dict(track(in_slots(generator, cases, changed, slots), f"in {slots} slots, in {precision}", count, console=console))
    seconds = between - began, time.perf_counter() - between
    return summary(plain, [others[case.index] for case in cases], slots, precision, seconds)


def summary(
    plain: list[Ending], others: list[Ending], slots: int, precision: Precision, seconds: tuple[float, float]
) -> Agreement:
    both = [[ending.distance_px for ending in endings] for endings in (plain, others)]
    (median, other_median), (p95, other_p95) = ([float(np.percentile(one, at)) for one in both] for at in (50, 95))
    agree = [one.reached == other.reached for one, other in zip(plain, others, strict=True)]
    return Agreement(
        drags=len(plain), slots=slots, precision=precision, agree_percent=100 * sum(agree) / len(agree),
        median_px=(median, other_median), p95_px=(p95, other_p95), seconds=seconds,
    )  # fmt: skip


def run_of(generator: Generator, case: Case, options: DragOptions) -> DragRun:
    return DragRun(generator, case.start, to_points(case.handles), to_points(case.targets), None, options)


def alone(generator: Generator, case: Case, options: DragOptions) -> Ending:
    *_, result = steps(run_of(generator, case, options))
    return Ending(result.stop_reason == "reached", result.distance_px)


def in_slots(generator: Generator, cases: list[Case], options: DragOptions, slots: int) -> Iterator[tuple[int, Ending]]:
    """Cases by their index as they end; the next one takes the slot."""
    waiting, running = iter(cases), dict[int, DragRun]()
    while True:
        for case in waiting:
            running[case.index] = run_of(generator, case, options)
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
                yield index, Ending(reason == "reached", run.best.distance_px)
                del running[index]
            else:
                run.descend(update)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drags", type=int, default=100)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--preset", choices=["default", "fast", "paper"], default="default")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = compare(given.drags, given.slots, given.preset, given.precision, given.seed, Console(stderr=True))
    print(json.dumps(asdict(found) | {"threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
