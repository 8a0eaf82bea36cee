"""The studies of `dragqueue eval`: their cases, methods and figures."""

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
    EditedCase,
    MakeBatch,
    Method,
    block_matching,
    drag_method,
    no_edit,
    there_and_back,
    without_tracking,
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

Score = Callable[[Case, EditedCase], dict[str, float]]


@dataclass(frozen=True)
class Study:
    """A table to measure: every method on every case of every group."""

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
        """Yield group, method and case of everything to run, case by case, so that a part of a table has all its rows."""
        for group, cases in self.groups.items():
            for k, case in enumerate(cases):
                for method in self.methods:
                    if self.comparisons is None or k < self.comparisons or method.name in self.headline:
                        yield group, method, case


@dataclass(frozen=True)
class StudyContext:
    """The model, the ruler and the networks that studies measure with."""

    generator: Generator
    model: ModelEntry
    ruler: Ruler
    perceptual: PerceptualDistance | None = None
    encoder: nn.Module | None = None  # guesses the w of a picture

    @property
    def psi(self) -> float:
        """Return the model's truncation."""
        return self.model.defaults.truncation_psi

    @cached_property
    def default(self) -> Method:
        """Return the drag of the default preset."""
        return self.drag("default")

    def drag(
        self, name: str, make: MakeBatch = make_batch, engine_options: dict[str, Any] | None = None, **given: object
    ) -> Method:
        """Return a drag with the options of a job, and engine options beyond those."""
        return drag_method(name, self.model, make, engine_options, **{"max_iterations": MAX_ITERATIONS, **given})

    def cases(self, points: int, count: int, seed: int) -> list[Case]:
        """Draw cases of so many points: landmarks where they are known, else random points."""
        if isinstance(self.ruler, LandmarkRuler):
            return list(landmark_cases(self.ruler, self.psi, count, points, seed))
        return list(displacement_cases(self.generator, self.psi, count, points, seed))

    def distances(self, case: Case, edited: EditedCase) -> dict[str, float]:
        """Measure the distances of an edited case by the ruler."""
        found = self.ruler.locate(case.start, case.handles, case.labels, edited.w)
        return distances(case, edited, found)

    @torch.no_grad()
    def image(self, w: Tensor) -> Tensor:
        """Return the picture [1, 3, R, R] of w+, clamped to [-1, 1]."""
        return self.generator.images(w).clamp(-1, 1)

    def image_similarity(self, one: Tensor, other: Tensor) -> dict[str, float]:
        """Return how similar the pictures of two w+ are."""
        a, b = self.image(one), self.image(other)
        error = mse(a, b)
        figures = {"mse": error, "psnr_db": psnr(error), "ssim": ssim(a, b)}
        return figures if self.perceptual is None else figures | {"perceptual": self.perceptual(a, b)}


def has_geometry(context: StudyContext) -> bool:
    """Return whether the model's landmarks are known."""
    return isinstance(context.ruler, LandmarkRuler)


def landmarks(context: StudyContext, count: int, comparisons: int, seed: int, points: list[int], methods: list[Method]) -> Study:
    """Make the study of dragged landmarks: `count` cases for the headline rows, `comparisons` for the others."""
    groups = {group_name(number): context.cases(number, count, seed) for number in points}
    title = "Two samples; landmarks of the first dragged to where the second has them (paper, table 1)"
    if not has_geometry(context):
        title = "Random points dragged 5 to 15 % of the width (no geometry is known for this model)"
    notes = [f"true distance: by the {context.ruler.name}", f"up to {MAX_ITERATIONS} iterations, psi {context.psi}"]
    rows = ("no edit", "paper", "default")
    return Study("landmarks", title, groups, methods, context.distances, PIXELS, context.default, notes, rows, comparisons)


def comparison_methods(context: StudyContext) -> list[Method]:
    """Return the methods that every model is compared by."""
    return [
        Method("no edit", no_edit),
        context.drag("paper", preset="paper"),
        context.default,
        context.drag("fast", preset="fast"),
        context.drag("w instead of w+", latent_space="w"),
        context.drag("no tracking", make=without_tracking),
        context.drag("block matching", make=block_matching),
    ]


def pairs(context: StudyContext, count: int, seed: int) -> Study:
    """Make the study of paired image reconstruction."""
    methods = [Method("no edit", no_edit), context.drag("paper", preset="paper"), context.default]

    def score(case: Case, edited: EditedCase) -> dict[str, float]:
        assert case.goal is not None
        return context.image_similarity(edited.w, case.goal)

    title = "z and a perturbed z; the second reconstructed from the first by 32 points (paper, table 2)"
    groups = {"32 points": list(pair_cases(context.generator, context.psi, count, seed))}
    return Study("pairs", title, groups, methods, score, PICTURES, context.default, [perceptual_note(context)])


def perceptual_note(context: StudyContext) -> str:
    """Return the note on the perceptual distance."""
    return "perceptual: LPIPS-like (SqueezeNet)" + (", no weights given" if context.perceptual is None else "")


def cycle(context: StudyContext, count: int, seed: int) -> Study:
    """Make the study of drags to the targets and back."""

    def score(case: Case, edited: EditedCase) -> dict[str, float]:
        back = context.ruler.locate(case.start, case.handles, case.labels, edited.w)
        returned = Case(index=case.index, start=case.start, handles=case.handles, targets=case.handles, labels=case.labels)
        return distances(returned, edited, back) | context.image_similarity(edited.w, case.start)

    groups = {group_name(number): context.cases(number, count, seed) for number in (1, 5)}
    title = "Dragged to the targets and back: how far the picture is from where it began"
    columns = ("true_px", "tracker_px", "gap_px", *PICTURES)
    method = there_and_back("default", context.default)
    return Study("cycle", title, groups, [method], score, columns, method, [perceptual_note(context)])


def background(context: StudyContext, count: int, seed: int) -> Study:
    """Make the study of what changes outside a mask."""
    assert isinstance(context.ruler, LandmarkRuler)

    def score(case: Case, edited: EditedCase) -> dict[str, float]:
        movable = case.movable(context.generator.config.resolution)
        fixed = torch.from_numpy(~movable).to(context.generator.device) if movable is not None else None
        outside = psnr(mse(context.image(edited.w), context.image(case.start), fixed))
        return context.distances(case, edited) | {"background_db": outside}

    groups = {"1 point, circular mask": list(background_cases(context.ruler, context.psi, count, seed))}
    methods = [context.drag("paper", preset="paper"), context.default, context.drag("fast", preset="fast")]
    methods += [context.drag("mask_weight 40", mask_weight=40.0), context.drag("no mask", mask_weight=0.0)]
    title = "One landmark dragged within a circle, a third of them of radius <= 15 % of the width"
    return Study("background", title, groups, methods, score, ("background_db", *PIXELS), context.default)


def ablation(context: StudyContext, count: int, seed: int) -> Study:
    """Make the study of one option changed at a time."""
    settings: dict[str, list[Any]] = {
        "feature_resolution": [size for size in (16, 32, 64, 128, 256) if size <= context.model.resolution],
        "motion_radius": [1.0, 2.0, 3.0, 4.0, 6.0, 12.0],
        "tracking_radius": [4.0, 8.0, 12.0, 16.0, 24.0],
        "trainable_layers": [2, 4, 6, 8, context.model.num_ws],
        "learning_rate": [0.002, 0.005, 0.01, 0.02, 0.03, 0.05],
    }
    methods = [context.default]
    methods += [context.drag(f"{name} {value}", **{name: value}) for name, values in settings.items() for value in values]
    groups = {group_name(1): context.cases(1, count, seed)}
    title = "One option changed at a time (paper, tables 3 and 4)"
    return Study("ablation", title, groups, methods, context.distances, PIXELS, context.default)


def mask_study(context: StudyContext, count: int, seed: int) -> Study:
    """Make the study of the mask's weight, on the cases of `background`."""
    whole = background(context, count, seed)
    weights = (0.0, 10.0, 20.0, 40.0, 80.0)
    methods = [context.default, *(context.drag(f"mask_weight {weight:g}", mask_weight=weight) for weight in weights)]
    return Study(
        "mask", "The mask's weight (paper, figure on masks)", whole.groups, methods, whole.score, whole.columns, context.default
    )


def distances(case: Case, edited: EditedCase, found: np.ndarray) -> dict[str, float]:
    """Return the distances of a Measurement.

    Args:
        found: [K, 2] xy pixels, where the ruler sees the handles.
    """
    apart = np.linalg.norm(found - case.targets, axis=1)
    return {
        "true_px": float(apart.mean()),
        "worst_px": float(apart.max()),
        "tracker_px": float(np.linalg.norm(edited.handles - case.targets, axis=1).mean()),
        "lost_percent": float(100 * (np.linalg.norm(found - edited.handles, axis=1) > LOST_PX).mean()),
    }


def choices(context: StudyContext, count: int, seed: int, points: list[int]) -> Study:
    """Make the study of the default preset's choices, each undone alone."""
    methods = [
        context.default,
        context.drag("the feature block alone", engine_options={"context_blocks": 0}),
        context.drag("one coarser block", engine_options={"context_blocks": 1}),
        context.drag("features now, to the end", engine_options={"anchor_distance": 0.0}),
        context.drag("features of the start, all the way", engine_options={"anchor_distance": 1e6}),
        context.drag("steps of whole pixels", engine_options={"overstep": True}),
        context.drag("tracked to whole pixels", engine_options={"subpixel": False}),
        context.drag("stop at 1 px", stop_distance=1.0),
        context.drag("all five as in the paper", engine_options=PAPER_LOOP, stop_distance=1.0),
        context.drag("fast", preset="fast"),
    ]
    groups = {group_name(number): context.cases(number, count, seed) for number in points}
    title = "What the default preset chose, undone one by one"
    return Study("choices", title, groups, methods, context.distances, PIXELS, context.default)


def group_name(points: int) -> str:
    """Return the name of the cases of so many points."""
    return "1 point" if points == 1 else "all points" if points == ALL_POINTS else f"{points} points"


STUDIES: dict[str, Callable[[StudyContext, int, int], Study]] = {
    "pairs": pairs,
    "ablation": ablation,
    "mask": mask_study,
    "cycle": cycle,
    "background": background,
}
