"""Random drags of the demo checkpoint: how many reach their targets, after how many iterations, and the worst in pictures.

A case takes two seeds and 1 to 5 landmarks; the first face's landmarks are dragged to where the second face has them, at
most a quarter of the width away. Distances are the tracker's own.

    python -m benchmarks.drags --cases 50 --out docs/drags
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.faces.factors import factors_of
from benchmarks.faces.parts import LANDMARKS, Anatomy
from engine.drag import DragStep
from engine.generator import Generator
from engine.overlay import draw_overlay
from jobs.checkpoints import Manifest
from jobs.settings import REPOSITORY
from jobs.spec import JobSpec
from jobs.submission import check_submission
from worker.edit import choose_device, open_generator, start_latent, steps

MODEL = "demo-faces"
CHECKPOINTS = REPOSITORY / "checkpoints"
MAX_ITERATIONS = 100
LONGEST = 0.25  # of the width
WORST = 10


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One case and how it ended."""

    seed: int
    landmarks: list[str]
    start_px: float  # largest distance at the start
    stop_reason: str
    iterations: int
    distance_px: float  # largest distance of the result, by the tracker
    step_ms: float


def landmarks_of(seed: int, psi: float, resolution: int) -> np.ndarray:
    """The true landmarks [K, 2] of a seed, in pixels."""
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, 64)).float()
    points: np.ndarray = ((Anatomy(factors_of(z, psi=psi)).landmarks() + 1) * (resolution / 2) - 0.5)[0].numpy()
    return points


def random_specs(manifest: Manifest, count: int, seed: int) -> Iterator[tuple[JobSpec, list[str]]]:
    model = manifest.get(MODEL)
    psi, last = model.defaults.truncation_psi, model.resolution - 1
    random = np.random.RandomState(seed)
    for _ in range(count):
        first, second = (int(number) for number in random.randint(100_000, size=2))
        chosen = random.permutation(len(LANDMARKS))[: random.randint(1, 6)]
        handles = landmarks_of(first, psi, model.resolution)[chosen].clip(0, last)
        ways = landmarks_of(second, psi, model.resolution)[chosen] - handles
        lengths = np.linalg.norm(ways, axis=1, keepdims=True)
        targets = (handles + ways * np.minimum(1, LONGEST * model.resolution / lengths)).clip(0, last)
        pairs = [{"handle": h, "target": t} for h, t in zip(handles.tolist(), targets.tolist(), strict=True)]
        document = {"model": MODEL, "source": {"seed": first}, "points": pairs, "drag": {"max_iterations": MAX_ITERATIONS}}
        yield check_submission(document, manifest).spec, [LANDMARKS[k] for k in chosen]


def run_case(generator: Generator, spec: JobSpec, names: list[str]) -> tuple[Outcome, Image.Image]:
    start, began = start_latent(spec, generator), time.perf_counter()
    *way, result = steps(spec, generator, start, None)
    outcome = Outcome(
        seed=spec.source.seed,
        landmarks=names,
        start_px=way[0].distance_px,
        stop_reason=str(result.stop_reason),
        iterations=way[-1].iteration,
        distance_px=result.distance_px,
        step_ms=1000 * (time.perf_counter() - began) / len(way),
    )
    return outcome, picture(generator, spec, way, result, outcome)


def picture(generator: Generator, spec: JobSpec, way: list[DragStep], result: DragStep, outcome: Outcome) -> Image.Image:
    """The source with its points above the result with the ways."""
    targets = [pair.target for pair in spec.points]
    ways = [step.handles.tolist() for step in way[: result.iteration + 1]]
    before = draw_overlay(generator.render(way[0].w), ways[:1], targets)
    both = Image.fromarray(np.concatenate([before, draw_overlay(generator.render(result.w), ways, targets)])).resize((256, 512))
    text = f"{outcome.start_px:.0f} -> {outcome.distance_px:.1f} px, {outcome.iterations} it., {outcome.stop_reason}"
    ImageDraw.Draw(both).text((4, 2), text, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return both


def summary(outcomes: list[Outcome]) -> dict[str, float]:
    reached = [outcome for outcome in outcomes if outcome.stop_reason == "reached"]
    return {
        "cases": len(outcomes),
        "reached": len(reached),
        "reached_percent": round(100 * len(reached) / len(outcomes), 1),
        "median_iterations_of_reached": median(outcome.iterations for outcome in reached) if reached else math.nan,
        "median_start_px": round(median(outcome.start_px for outcome in outcomes), 1),
        "median_distance_px": round(median(outcome.distance_px for outcome in outcomes), 2),
        "median_step_ms": round(median(outcome.step_ms for outcome in outcomes), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of cases")
    parser.add_argument("--out", type=Path, required=True, help="folder for drags.json and worst.png")
    arguments = parser.parse_args()
    manifest = Manifest.load(CHECKPOINTS)
    model = manifest.get(MODEL)
    generator = open_generator(manifest, model, choose_device("auto"))
    cases = []
    for spec, names in random_specs(manifest, arguments.cases, arguments.seed):
        cases.append(run_case(generator, spec, names))
        print(f"{len(cases)}/{arguments.cases}: {cases[-1][0]}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    outcomes = [outcome for outcome, _ in cases]
    report = {"summary": summary(outcomes), "cases": [asdict(outcome) for outcome in outcomes]}
    (arguments.out / "drags.json").write_text(json.dumps(report, indent=1))
    write_sheet([image for _, image in sorted(cases, key=lambda case: -case[0].distance_px)[:WORST]], arguments.out / "worst.png")
    print(json.dumps(report["summary"], indent=1))


def write_sheet(images: list[Image.Image], path: Path) -> None:
    """Two rows of pictures."""
    columns = -(-len(images) // 2)
    sheet = Image.new("RGB", (columns * 256, 1024))
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * 256, k // columns * 512))
    sheet.save(path)


if __name__ == "__main__":
    main()
