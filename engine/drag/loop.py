"""DragGAN's loop (Pan et al., SIGGRAPH 2023), top to bottom.

`steps` is the loop of one drag: features, point tracking, motion supervision, mask term, stop test, solver step.
`Iteration.evaluate` is one iteration up to the loss. What varies plugs in behind interfaces:

- how a solver judges features and takes its step: `Objective` and `Solver` (solvers.py; adam.py is the paper's);
- how handles are tracked: `Tracker` (tracking.py);
- which cells of the features are computed, whole maps or windows: `FeaturePlan` (feature_pass.py);
- how an iteration's operations run, one by one or as a CUDA graph: `Executor` (cuda_graphs.py);
- with which other drags an iteration is computed: `Stepper` (alone here; batched in worker/slots).

Handles and targets are (x, y) in pixels of the model's image, pixel centers at integers. The movable mask is True where
pixels may change. Shapes: N drags, K points of all drags, P places of a disc, L layers, D width of w.
"""

import collections.abc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.drag.cuda_graphs import CudaGraphExecutor, can_use_cuda_graphs
from engine.drag.feature_pass import FeaturePass, compute_features
from engine.drag.features import FeatureMap
from engine.drag.iteration_data import Evaluate, Evaluation, Points, Reference, StepInputs, capture_references, join_references
from engine.drag.options import DragOptions
from engine.drag.run import DragRun, DragStep, StopReason
from engine.drag.solvers import SOLVERS
from engine.drag.tracking import track_points, tracking_pixels
from engine.errors import DragDiverged
from engine.networks.stylegan2 import Generator

Steps = collections.abc.Generator[DragStep, None, None]
Tracker = Callable[[list[FeatureMap], Tensor, Tensor], Tensor]  # (maps, features at the start [K, C], handles [K, 2]) -> [K, 2]


class Executor(Protocol):
    """How the operations of an iteration are run."""

    def __call__(self, evaluate: Evaluate, inputs: StepInputs) -> Evaluation:
        """Return what `evaluate` returns for these inputs."""
        ...


class Stepper(Protocol):
    """How the iterations of a drag are computed: alone or with others."""

    def step(self, run: DragRun) -> DragStep:
        """Compute the next iteration up to its loss. Raises DragDiverged."""
        ...

    def update(self, run: DragRun) -> Any:
        """Return what the drag's solver takes its step by."""
        ...


def drag(
    generator: Generator,
    w: Tensor,
    handles: Tensor,
    targets: Tensor,
    *,
    movable: Tensor | None = None,
    options: DragOptions | None = None,
) -> Iterator[DragStep]:
    """Yield one step for each iteration, and the best one once more with its stop reason.

    Args:
        generator: frozen; what is made of its weights is kept for further drags.
        w: where to start, [1, L, D].
        handles, targets: [K, 2] xy pixels; handles[i] is pulled towards targets[i].
        movable: [R, R] bool, True where the image may change; None: everywhere.
        options: how to drag; None: the paper's loop.

    Raises:
        InvalidEdit: the arguments do not fit the generator or each other.
        DragDiverged: the loss became infinite or NaN.
    """
    yield from steps(DragRun(generator, w, handles, targets, movable, options or DragOptions()))


def steps(run: DragRun, stepper: Stepper | None = None) -> Steps:
    """Iterate a drag until there is a reason to stop; the best step comes once more at the end.

    Args:
        stepper: computes the iterations; None: alone.

    Raises:
        DragDiverged: the loss became infinite or NaN.
    """
    stepper = stepper or SingleStepper(make_batch([run]))
    while True:
        step = stepper.step(run)  # features, point tracking, motion supervision, mask term
        run.record(step)
        reason = stop_reason(run, step)  # stop test
        if reason is not None:
            break
        yield step
        run.take_step(stepper.update(run))  # solver step
    yield step
    assert run.best is not None
    yield replace(run.best, stop_reason=reason)


def stop_reason(run: DragRun, step: DragStep) -> StopReason | None:
    """Return why a drag ends with this step, which must be recorded; None: it goes on."""
    if step.distance_px <= run.options.stop_distance:
        return "reached"
    if step.iteration >= run.options.max_iterations:
        return "max_iterations"
    return "stalled" if run.stall.stalled(step.iteration) else None


class Iteration:
    """One iteration of drags of one kind, up to the losses, as a function of its inputs. It refers to no run."""

    def __init__(self, runs: Sequence[DragRun], tracker: Tracker | None) -> None:
        first = runs[0]
        options = first.options
        widest = max(runs, key=lambda run: run.plan.whole)  # where many points make whole maps cheaper
        self.synthesis, self.plan, self.resolution = first.synthesis, widest.plan, first.resolution
        self.offsets = first.offsets  # [P, 2]
        self.counts = [len(run.handles) for run in runs]
        self.anchor_px = self.per_point([run.options.anchor_distance * run.scale for run in runs])  # [K]
        self.stop_px = self.per_point([run.options.stop_distance for run in runs])  # [K]
        self.objective = SOLVERS[options.solver].objective(options)
        self.tracker = tracker or partial(
            track_points, resolution=self.resolution, radius=tracking_pixels(options, self.resolution),
            metric=options.tracking_metric, subpixel=options.subpixel,
        )  # fmt: skip

    def per_point(self, numbers: Sequence[float]) -> Tensor:
        """Return [K], each drag's number for each of its points."""
        repeated = [number for number, count in zip(numbers, self.counts, strict=True) for _ in range(count)]
        return self.offsets.new_tensor(repeated)

    def evaluate(self, inputs: StepInputs) -> Evaluation:
        """Compute features, track the handles, then judge the same features (sections 3.2 and 3.3 of the paper)."""
        # features around every handle: windows of fine blocks, coarse blocks whole
        ws = torch.cat(inputs.ws)  # [B, L, D]
        features = compute_features(self.synthesis, self.plan, ws, inputs.centers, self.resolution, self.owners(inputs))
        held = next((mask.held_maps(features.blocks, features.modulations) for mask in inputs.masks if mask is not None), [])
        references = self.complete_references(inputs, features, held)
        joined = inputs.joined or join_references(references)

        # point tracking: each handle is where the features are nearest to those of the start
        with torch.no_grad():
            points = self.track_handles(inputs, joined, features.detached_maps())

        # motion supervision: the disc around each handle should come one step nearer to its target
        motion = [part.sum() for part in torch.split(self.objective.point_losses(features.maps, points), self.counts)]

        # mask term: the maps should not change where the image must stay
        losses = [loss + penalty for loss, penalty in zip(motion, self.penalties(inputs, references, held), strict=True)]
        return Evaluation(handles=points.handles, references=references, joined=joined, losses=losses, points=points)

    def track_handles(self, inputs: StepInputs, joined: Reference, maps: list[FeatureMap]) -> Points:
        """Return the points. The handles of drags that have moved are tracked; the handles of other drags are known."""
        points = self.points_at(inputs.handles, inputs.targets, joined)
        if not any(inputs.moved):
            return points
        tracked = self.tracker(maps, joined.features, inputs.handles)  # [K, 2]
        found = self.objective.refine_handles(maps, self.points_at(tracked, inputs.targets, joined))  # [K, 2]
        if all(inputs.moved):
            return self.points_at(found, inputs.targets, joined)
        parts = zip(torch.split(found, self.counts), torch.split(inputs.handles, self.counts), inputs.moved, strict=True)
        handles = torch.cat([new if moved else old for new, old, moved in parts])
        return self.points_at(handles, inputs.targets, joined)

    def penalties(self, inputs: StepInputs, references: list[Reference], held: list[Tensor]) -> Iterator[Tensor | float]:
        """Yield what is added to each drag's motion loss: its mask term and its latent term."""
        for k, (mask, latent_term) in enumerate(zip(inputs.masks, inputs.latent_terms, strict=True)):
            now = [each[k : k + 1] for each in held]
            terms = [] if mask is None else [mask.loss(now, references[k].held)]
            yield sum(terms if latent_term is None else [*terms, latent_term])

    def points_at(self, handles: Tensor, targets: Tensor, reference: Reference) -> Points:
        return Points(
            handles=handles, targets=targets, anchored=(targets - handles).norm(dim=1) <= self.anchor_px, stop_px=self.stop_px,
            reference=reference, offsets=self.offsets, resolution=self.resolution, counts=self.counts,
        )  # fmt: skip

    def owners(self, inputs: StepInputs) -> Tensor | None:
        """Return [K], which w+ of the pass each point belongs to; None: there is only one."""
        first, owners = 0, []
        for variable, points in zip(inputs.variables, self.counts, strict=True):
            copies = len(variable)
            owner = inputs.handles.new_full((points,), first, dtype=torch.long)  # made on the device: nothing waits for the host
            owners.append(owner + torch.arange(points, device=owner.device) if copies == points else owner)
            first += copies
        return None if first == 1 else torch.cat(owners)

    def complete_references(self, inputs: StepInputs, features: FeaturePass, held: list[Tensor]) -> list[Reference]:
        """Return the reference of each drag; those that start with this iteration capture theirs now."""
        known = [reference for reference in inputs.references if reference is not None]
        if len(known) == len(inputs.references):
            return known
        maps = features.detached_maps()
        captured = capture_references(maps, held, inputs.handles, self.counts, self.offsets, self.resolution)
        return [one or other for one, other in zip(inputs.references, captured, strict=True)]


def execute_eagerly(evaluate: Evaluate, inputs: StepInputs) -> Evaluation:
    """Run the operations one by one."""
    return evaluate(inputs)


class DragBatch:
    """Drags of one kind whose iterations are computed together; each goes as it would alone, but for rounding."""

    def __init__(self, runs: Sequence[DragRun], *, tracker: Tracker | None = None, executor: Executor = execute_eagerly) -> None:
        """Create a batch.

        Args:
            runs: drags of one kind.
            tracker: finds the handles; None: `track_points` with the drags' options. Others are there to be compared.
            executor: runs the operations.

        Raises:
            ValueError: the drags are of different kinds.
        """
        if len({run.batch_key for run in runs}) != 1:
            raise ValueError("only drags of one kind can make their steps together")
        self.runs = runs
        self.iteration = Iteration(runs, tracker)
        self.targets = torch.cat([run.targets for run in runs])  # [K, 2]
        self.executor = executor
        self.joined: Reference | None = None  # of all points, once every drag has started
        self.computed: tuple[StepInputs, Evaluation] | None = None  # of the last step, until its updates are computed

    def step(self) -> list[DragStep | DragDiverged]:
        """Compute the next iteration of every drag up to its loss."""
        inputs = self.inputs()
        evaluation = self.executor(self.iteration.evaluate, inputs)
        self.joined, self.computed = evaluation.joined, (inputs, evaluation)
        handles = torch.split(evaluation.handles, self.iteration.counts)
        for run, reference, found in zip(self.runs, evaluation.references, handles, strict=True):
            run.accept_tracking(reference, found)
        return self.collect_steps(evaluation)

    def updates(self) -> Sequence[Any]:
        """Return what each drag's solver takes its step by, after `step`; the step's graph is let go."""
        assert self.computed is not None
        (inputs, evaluation), self.computed = self.computed, None
        if evaluation.gradients is None:
            assert evaluation.points is not None
            return self.iteration.objective.updates(evaluation.losses, inputs.variables, evaluation.points)
        each = zip(inputs.ws, inputs.variables, evaluation.gradients, strict=True)
        return [torch.autograd.grad(w, variable, gradient)[0] for w, variable, gradient in each]

    def inputs(self) -> StepInputs:
        runs = self.runs
        variables = [run.solver.pass_variables() for run in runs]
        return StepInputs(
            variables=variables,
            ws=[run.w_plus(variable) for run, variable in zip(runs, variables, strict=True)],
            handles=torch.cat([run.handles for run in runs]),
            centers=torch.cat([run.centers for run in runs]),
            targets=self.targets,
            moved=[run.moved for run in runs],
            references=[run.reference for run in runs],
            joined=self.joined or self.join_known_references(),
            masks=[run.mask for run in runs],
            latent_terms=[run.latent_term() for run in runs],
        )

    def join_known_references(self) -> Reference | None:
        """Return the reference of all points where every drag has started, as in a batch of drags that met others before."""
        known = [run.reference for run in self.runs if run.reference is not None]
        return join_references(known) if len(known) == len(self.runs) else None

    def collect_steps(self, evaluation: Evaluation) -> list[DragStep | DragDiverged]:
        """Return every drag's step; the host reads all their numbers at once."""
        handles, counts = evaluation.handles, self.iteration.counts
        distances = (self.targets - handles).norm(dim=1)  # [K]
        losses = torch.stack([loss.detach() for loss in evaluation.losses])  # [N]
        numbers = torch.cat([losses, distances, handles.flatten()]).cpu()  # [N + 3 K]
        losses, distances, places = torch.split(numbers, [len(losses), len(distances), handles.numel()])
        each = zip(torch.split(distances, counts), torch.split(places.view(-1, 2), counts), strict=True)
        return [make_step(run, loss, *found) for run, loss, found in zip(self.runs, losses.tolist(), each, strict=True)]


def make_step(run: DragRun, loss: float, distances: Tensor, handles: Tensor) -> DragStep | DragDiverged:
    """Return a drag's step: its distances [K] and handles [K, 2] in pixels, on the CPU."""
    if not math.isfinite(loss):
        return DragDiverged(f"the loss became {loss} at iteration {run.iteration}")
    distances_px = distances.tolist()
    return DragStep(
        iteration=run.iteration, w=run.current_w(), handles=handles, loss=loss, distance_px=max(distances_px),
        mean_distance_px=sum(distances_px) / len(distances_px),
    )  # fmt: skip


def make_batch(runs: Sequence[DragRun]) -> DragBatch:
    """Return a batch of drags of one kind, whose steps a GPU replays as a CUDA graph where it can."""
    executor = CudaGraphExecutor(runs) if can_use_cuda_graphs(runs) else execute_eagerly
    return DragBatch(runs, executor=executor)


class SingleStepper:
    """Computes the iterations of the only drag of a batch."""

    def __init__(self, batch: DragBatch) -> None:
        self.batch = batch

    def step(self, run: DragRun) -> DragStep:
        [step] = self.batch.step()
        if isinstance(step, DragDiverged):
            raise step
        return step

    def update(self, run: DragRun) -> Any:
        [update] = self.batch.updates()
        return update


def to_points(points: np.ndarray | list[tuple[float, float]]) -> Tensor:
    """Return xy pixels as a tensor [K, 2]."""
    return torch.as_tensor(np.asarray(points, dtype=np.float64)).reshape(-1, 2)
