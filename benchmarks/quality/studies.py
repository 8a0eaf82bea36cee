"""The studies of `dragqueue eval`: which cases, which methods, which figures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.faces.parts import LANDMARKS
from benchmarks.quality.cases import (
    Case,
    background_cases,
    displacement_cases,
    landmark_cases,
    pair_cases,
)
from benchmarks.quality.methods import (
    Ending,
    Method,
    Together,
    block_matching,
    dragging,
    no_edit,
    there_and_back,
    untracked,
)
from benchmarks.quality.metrics import PerceptualDistance, mse, psnr, ssim
from benchmarks.quality.rulers import LandmarkRuler, Ruler
from engine.drag.loop import make_batch
from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelEntry

MAX_ITERATIONS = 100
LOST_PX = 3.0  # tracker and ruler disagree by more: the tracker has lost the point
ALL_POINTS = len(LANDMARKS)
PAPER_LOOP = {"anchor_distance": 0.0, "context_blocks": 0, "overstep": True, "subpixel": False}
PIXELS = ("true_px", "tracker_px", "gap_px", "within_1_percent", "within_2_percent", "lost_percent", "iterations", "seconds")
PICTURES = ("mse_x100", "psnr_db", "ssim", "perceptual_x10", "iterations", "seconds")

Score = Callable[[Case, Ending], dict[str, float]]


@dataclass(frozen=True)
class Study:
    """A table: every method on every case of every group."""

    name: str
    title: str
    groups: dict[str, list[Case]]
    methods: list[Method]
    score: Score
    columns: tuple[str, ...]
    plain: Method  # the row that others are compared with, and whose cases are shown
    notes: list[str] = field(default_factory=list)
    headline: tuple[str, ...] = ()  # rows that run on every case; the others on the first `comparisons`
    comparisons: int | None = None  # None: all

    def cells(self) -> Iterator[tuple[str, Method, Case]]:
        """Group, method and case of everything to run; case by case, so that a part of a table has all its rows."""
        for group, cases in self.groups.items():
            for k, case in enumerate(cases):
                for method in self.methods:
                    if self.comparisons is None or k < self.comparisons or method.name in self.headline:
                        yield group, method, case


@dataclass(frozen=True)
class Bench:
    """What every study needs."""

    generator: Generator
    model: ModelEntry
    ruler: Ruler
    perceptual: PerceptualDistance | None = None
    encoder: nn.Module | None = None  # guesses the w of a picture

    @property
    def psi(self) -> float:
        return self.model.defaults.truncation_psi

    @cached_property
    def default(self) -> Method:
        return self.drag("default")

    def drag(self, name: str, together: Together = make_batch, beyond: dict[str, Any] | None = None, **given: object) -> Method:
        return dragging(name, self.model, together, beyond, **{"max_iterations": MAX_ITERATIONS, **given})

    def cases(self, points: int, count: int, seed: int) -> list[Case]:
        if isinstance(self.ruler, LandmarkRuler):
            return list(landmark_cases(self.ruler, self.psi, count, points, seed))
        return list(displacement_cases(self.generator, self.psi, count, points, seed))

    def distances(self, case: Case, ending: Ending) -> dict[str, float]:
        found = self.ruler.locate(case.start, case.handles, case.labels, ending.w)
        return distances(case, ending, found)

    @torch.no_grad()
    def image(self, w: Tensor) -> Tensor:
        return self.generator.images(w).clamp(-1, 1)

    def likeness(self, one: Tensor, other: Tensor) -> dict[str, float]:
        """How alike G of two latents is."""
        a, b = self.image(one), self.image(other)
        error = mse(a, b)
        figures = {"mse": error, "psnr_db": psnr(error), "ssim": ssim(a, b)}
        return figures if self.perceptual is None else figures | {"perceptual": self.perceptual(a, b)}


def has_geometry(bench: Bench) -> bool:
    return isinstance(bench.ruler, LandmarkRuler)


def landmarks(bench: Bench, count: int, comparisons: int, seed: int, points: list[int], methods: list[Method]) -> Study:
    groups = {group_name(number): bench.cases(number, count, seed) for number in points}
    title = "Two samples; landmarks of the first dragged to where the second has them (paper, table 1)"
    if not has_geometry(bench):
        title = "Random points dragged 5 to 15 % of the width (no geometry is known for this model)"
    notes = [f"true distance: by the {bench.ruler.name}", f"up to {MAX_ITERATIONS} iterations, psi {bench.psi}"]
    rows = ("no edit", "paper", "default")
    return Study("landmarks", title, groups, methods, bench.distances, PIXELS, bench.default, notes, rows, comparisons)


def comparison_methods(bench: Bench) -> list[Method]:
    """The rows beside `default` that every model has."""
    return [
        Method("no edit", no_edit),
        bench.drag("paper", preset="paper"),
        bench.default,
        bench.drag("fast", preset="fast"),
        bench.drag("w instead of w+", latent_space="w"),
        bench.drag("no tracking", together=untracked),
        bench.drag("block matching", together=block_matching),
    ]


def pairs(bench: Bench, count: int, seed: int) -> Study:
    methods = [Method("no edit", no_edit), bench.drag("paper", preset="paper"), bench.default]

    def score(case: Case, ending: Ending) -> dict[str, float]:
        assert case.goal is not None
        return bench.likeness(ending.w, case.goal)

    title = "z and a perturbed z; the second reconstructed from the first by 32 points (paper, table 2)"
    groups = {"32 points": list(pair_cases(bench.generator, bench.psi, count, seed))}
    return Study("pairs", title, groups, methods, score, PICTURES, bench.default, [perceptual_note(bench)])


def perceptual_note(bench: Bench) -> str:
    return "perceptual: LPIPS-like (SqueezeNet)" + (", no weights given" if bench.perceptual is None else "")


def cycle(bench: Bench, count: int, seed: int) -> Study:
    def score(case: Case, ending: Ending) -> dict[str, float]:
        back = bench.ruler.locate(case.start, case.handles, case.labels, ending.w)
        returned = Case(index=case.index, start=case.start, handles=case.handles, targets=case.handles, labels=case.labels)
        return distances(returned, ending, back) | bench.likeness(ending.w, case.start)

    groups = {group_name(number): bench.cases(number, count, seed) for number in (1, 5)}
    title = "Dragged to the targets and back: how far the picture is from where it began"
    columns = ("true_px", "tracker_px", "gap_px", *PICTURES)
    method = there_and_back("default", bench.default)
    return Study("cycle", title, groups, [method], score, columns, method, [perceptual_note(bench)])


def background(bench: Bench, count: int, seed: int) -> Study:
    assert isinstance(bench.ruler, LandmarkRuler)

    def score(case: Case, ending: Ending) -> dict[str, float]:
        movable = case.movable(bench.generator.config.resolution)
        fixed = torch.from_numpy(~movable).to(bench.generator.device) if movable is not None else None
        outside = psnr(mse(bench.image(ending.w), bench.image(case.start), fixed))
        return bench.distances(case, ending) | {"background_db": outside}

    groups = {"1 point, circular mask": list(background_cases(bench.ruler, bench.psi, count, seed))}
    methods = [bench.drag("paper", preset="paper"), bench.default, bench.drag("fast", preset="fast")]
    methods += [bench.drag("mask_weight 40", mask_weight=40.0), bench.drag("no mask", mask_weight=0.0)]
    title = "One landmark dragged within a circle, a third of them of radius <= 15 % of the width"
    return Study("background", title, groups, methods, score, ("background_db", *PIXELS), bench.default)


def ablation(bench: Bench, count: int, seed: int) -> Study:
    settings: dict[str, list[Any]] = {
        "feature_resolution": [size for size in (16, 32, 64, 128, 256) if size <= bench.model.resolution],
        "motion_radius": [1.0, 2.0, 3.0, 4.0, 6.0, 12.0],
        "tracking_radius": [4.0, 8.0, 12.0, 16.0, 24.0],
        "trainable_layers": [2, 4, 6, 8, bench.model.num_ws],
        "learning_rate": [0.002, 0.005, 0.01, 0.02, 0.03, 0.05],
    }
    methods = [bench.default]
    methods += [bench.drag(f"{name} {value}", **{name: value}) for name, values in settings.items() for value in values]
    groups = {group_name(1): bench.cases(1, count, seed)}
    title = "One option changed at a time (paper, tables 3 and 4)"
    return Study("ablation", title, groups, methods, bench.distances, PIXELS, bench.default)


def mask_study(bench: Bench, count: int, seed: int) -> Study:
    whole = background(bench, count, seed)
    weights = (0.0, 10.0, 20.0, 40.0, 80.0)
    methods = [bench.default, *(bench.drag(f"mask_weight {weight:g}", mask_weight=weight) for weight in weights)]
    return Study(
        "mask", "The mask's weight (paper, figure on masks)", whole.groups, methods, whole.score, whole.columns, bench.default
    )


def distances(case: Case, ending: Ending, found: np.ndarray) -> dict[str, float]:
    """The fields of an Outcome that a ruler gives: found [K, 2] is where it sees the handles."""
    apart = np.linalg.norm(found - case.targets, axis=1)
    return {
        "true_px": float(apart.mean()),
        "worst_px": float(apart.max()),
        "tracker_px": float(np.linalg.norm(ending.handles - case.targets, axis=1).mean()),
        "lost_percent": float(100 * (np.linalg.norm(found - ending.handles, axis=1) > LOST_PX).mean()),
    }


def choices(bench: Bench, count: int, seed: int, points: list[int]) -> Study:
    """What the default preset chose, undone one by one."""
    methods = [
        bench.default,
        bench.drag("the feature block alone", beyond={"context_blocks": 0}),
        bench.drag("one coarser block", beyond={"context_blocks": 1}),
        bench.drag("features now, to the end", beyond={"anchor_distance": 0.0}),
        bench.drag("features of the start, all the way", beyond={"anchor_distance": 1e6}),
        bench.drag("steps of whole pixels", beyond={"overstep": True}),
        bench.drag("tracked to whole pixels", beyond={"subpixel": False}),
        bench.drag("stop at 1 px", stop_distance=1.0),
        bench.drag("all five as in the paper", beyond=PAPER_LOOP, stop_distance=1.0),
        bench.drag("fast", preset="fast"),
    ]
    groups = {group_name(number): bench.cases(number, count, seed) for number in points}
    title = "What the default preset chose, undone one by one"
    return Study("choices", title, groups, methods, bench.distances, PIXELS, bench.default)


def group_name(points: int) -> str:
    return "1 point" if points == 1 else "all points" if points == ALL_POINTS else f"{points} points"


STUDIES: dict[str, Callable[[Bench, int, int], Study]] = {
    "pairs": pairs,
    "ablation": ablation,
    "mask": mask_study,
    "cycle": cycle,
    "background": background,
}
