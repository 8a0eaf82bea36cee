"""The methods of editing that are compared; each takes a case and returns the edited case."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.quality.cases import Case
from engine.drag.features import FeatureMap
from engine.drag.loop import DragBatch, SingleStepper, make_batch, steps, to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from engine.drag.tracking import parabola_vertex, square_offsets, tracking_pixels
from engine.networks.stylegan2 import Generator, modulate
from jobs.models.manifest import ModelEntry
from jobs.spec.job_spec import Drag, JobSpec, Movable, PointPair, Shape, Source
from worker.edit.engine_setup import drag_options

MakeBatch = Callable[[Sequence[DragRun]], DragBatch]
PATCH_RADIUS = 4  # of block matching, pixels of a 128-pixel image


@dataclass(frozen=True, eq=False, kw_only=True)
class EditedCase:
    """The result of a method on a case."""

    w: Tensor  # [1, L, D]
    handles: np.ndarray  # [K, 2], where the method believes the handles to be
    iterations: int
    stop_reason: str
    seconds: float
    generator: Generator | None = None  # one tuned to the case's picture; None: the model's


@dataclass(frozen=True)
class Method:
    """A way of editing: one row of a table."""

    name: str
    run: Callable[[Generator, Case], EditedCase]


def no_edit(generator: Generator, case: Case) -> EditedCase:
    """Return the case as it is."""
    return EditedCase(w=case.start, handles=case.handles, iterations=0, stop_reason="none", seconds=0.0)


def service_options(model: ModelEntry, points: int, masked: bool = False, **given: object) -> DragOptions:
    """Return the options that a job for this model with these drag options would run with."""
    pairs = [PointPair(handle=(0, 0), target=(1, 1))] * points
    movable = Movable(shapes=[Shape(circle=(0, 0, 1))]) if masked else None
    drag = Drag.model_validate(given)
    spec = JobSpec(model=model.name, source=Source(seed=0), points=pairs, movable=movable, drag=drag)
    return drag_options(spec.resolved(model))


def drag_method(
    name: str, model: ModelEntry, make: MakeBatch = make_batch, engine_options: dict[str, Any] | None = None, **given: object
) -> Method:
    """Return DragGAN's loop with the options that a job with the given drag options would have.

    Args:
        make: makes the batch whose steps the loop takes.
        engine_options: options of the engine that no job can set, to compare what the presets chose.
    """

    def drag_case(generator: Generator, case: Case) -> EditedCase:
        mask = case.movable(generator.config.resolution)
        options = replace(service_options(model, len(case.handles), mask is not None, **given), **(engine_options or {}))
        movable = None if mask is None else torch.from_numpy(mask)
        handles, targets = to_points(case.handles), to_points(case.targets)
        began = time.perf_counter()
        run = DragRun(generator, case.start, handles, targets, movable, options)
        *before, result = steps(run, SingleStepper(make([run])))
        return EditedCase(
            w=result.w,
            handles=result.handles.cpu().numpy().astype(np.float64),
            iterations=before[-1].iteration,
            stop_reason=str(result.stop_reason),
            seconds=time.perf_counter() - began,
        )

    return Method(name, drag_case)


def without_tracking(runs: Sequence[DragRun]) -> DragBatch:
    """Return a batch that assumes each handle to have moved by the pixel that was asked for."""
    targets = torch.cat([run.targets for run in runs])

    def assume_moved(maps: list[FeatureMap], reference: Tensor, handles: Tensor) -> Tensor:
        motion = targets - handles
        moved: Tensor = handles + motion / motion.norm(dim=1, keepdim=True).clamp(min=1.0)
        return moved

    return DragBatch(runs, tracker=assume_moved)


def block_matching(runs: Sequence[DragRun]) -> DragBatch:
    """Return a batch of one drag that follows the pixels around each handle, as optical flow would."""
    [run] = runs
    return DragBatch(runs, tracker=BlockMatchingTracker(run))


class BlockMatchingTracker:
    """Follows the pixels around each handle from one image to the next."""

    def __init__(self, run: DragRun) -> None:
        self.run = run
        options, resolution = run.options, run.resolution
        self.patch_offsets = square_offsets(max(2, PATCH_RADIUS * resolution // 128), run.targets).reshape(-1, 2)  # [P, 2]
        self.search_offsets = square_offsets(tracking_pixels(options, resolution) + 1, run.targets).reshape(-1, 2)  # [S, 2]
        self.patches = self.patches_at(run.handles[:, None] + self.patch_offsets, self.image())  # [K, P, 3]

    def __call__(self, maps: list[FeatureMap], reference: Tensor, handles: Tensor) -> Tensor:
        """Return the handles [K, 2] in the image of the drag's current w."""
        image = self.image()
        places = handles[:, None] + self.search_offsets  # [K, S, 2]
        found = self.patches_at(places[:, :, None] + self.patch_offsets, image)  # [K, S, P, 3]
        side = round(len(self.search_offsets) ** 0.5)
        cost = (found - self.patches[:, None]).square().mean(dim=(2, 3)).view(-1, side, side)
        best = cost[:, 1:-1, 1:-1].flatten(1).argmin(dim=1)
        row, column = best // (side - 2) + 1, best % (side - 2) + 1
        center = torch.stack([column, row], dim=1) - side // 2
        shift = center + parabola_vertex(cost, torch.ones_like(cost, dtype=torch.bool), row, column)
        moved: Tensor = (handles + shift).clamp(0, self.run.resolution - 1)
        self.patches = self.patches_at(moved[:, None] + self.patch_offsets, image)
        return moved

    @torch.no_grad()
    def image(self) -> Tensor:
        network = self.run.synthesis.network
        return network.images(modulate(network.layers(), self.run.current_w()))

    def patches_at(self, points: Tensor, image: Tensor) -> Tensor:
        grid = (points * (2 / (self.run.resolution - 1)) - 1).reshape(1, 1, -1, 2)
        found = F.grid_sample(image, grid, padding_mode="border", align_corners=True)
        return found[0, :, 0].t().view(*points.shape[:-1], 3)


def there_and_back(name: str, method: Method) -> Method:
    """Return a method that drags to the targets, then from where the handles ended back to where they were."""

    def cycle(generator: Generator, case: Case) -> EditedCase:
        away = method.run(generator, case)
        last = generator.config.resolution - 1
        back = replace(case, start=away.w, handles=away.handles.clip(0, last), targets=case.handles)
        edited = method.run(generator, back)
        return replace(edited, iterations=away.iterations + edited.iterations, seconds=away.seconds + edited.seconds)

    return Method(name, cycle)
