"""One drag between its steps: where it is, what it remembers, when it ends."""

import collections.abc
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from engine.drag.feature_pass import watch
from engine.drag.features import FeatureMap, disc, read
from engine.drag.gauss_newton import SPACING, Evidence, GaussNewton, GaussNewtonState
from engine.drag.latent import choose_region, deviations
from engine.drag.mask_term import MaskTerm, early_shares, paper_shares
from engine.drag.options import REFERENCE_RESOLUTION, DragOptions, check_arguments, feature_resolution, watched
from engine.networks.frozen_synthesis import trunk_of
from engine.networks.stylegan2 import Generator
from engine.resumable_adam import AdamState, ResumableAdam

StopReason = Literal["reached", "max_iterations", "stalled", "stopped"]
CONTEXT_STRENGTH = 0.5  # of the features of coarser blocks beside those of the feature block
STALLED_GAIN = 0.1  # pixels at 512
STALLED_ITERATIONS = {"adam": 30, "gauss-newton": 5}


@dataclass(frozen=True, kw_only=True)
class DragStep:
    """One iteration: the latent as it was, and where the handles are in its image."""

    iteration: int
    w: Tensor  # [1, L, D]
    handles: Tensor  # [K, 2] xy pixels, on the CPU
    distance_px: float  # largest distance of a handle to its target
    mean_distance_px: float  # of all handles; what the best step is chosen by, since one lost handle says little
    loss: float
    stop_reason: StopReason | None = None  # set on the result, which comes last


Steps = collections.abc.Generator[DragStep, None, None]


@dataclass(frozen=True, kw_only=True)
class DragState:
    """A copy of what a drag's next steps depend on beside its arguments, taken at a step."""

    iteration: int
    handles: Tensor  # [K, 2] xy pixels, at that step
    centers: Tensor  # [K, 2] xy pixels, around which it was looked for them
    best: DragStep  # so far
    mark_px: float  # the record that makes it stall
    since: int  # the iteration that set it
    solver: AdamState | GaussNewtonState

    def tensors(self) -> dict[str, Tensor]:
        """By names that `read` understands."""
        best, numbers = self.best, (self.best.distance_px, self.best.mean_distance_px, self.best.loss, self.mark_px)
        return self.solver.tensors() | {
            "handles": self.handles, "centers": self.centers.clone(), "best.w": best.w, "best.handles": best.handles.clone(),
            "iterations": torch.tensor([self.iteration, best.iteration, self.since]),
            "numbers": torch.tensor(numbers, dtype=torch.float64),
        }  # fmt: skip

    @classmethod
    def read(cls, tensors: dict[str, Tensor]) -> "DragState":
        """Raises KeyError."""
        iteration, best_iteration, since = tensors["iterations"].tolist()
        distance_px, mean_distance_px, loss, mark_px = tensors["numbers"].tolist()
        best = DragStep(
            iteration=best_iteration, w=tensors["best.w"], handles=tensors["best.handles"], distance_px=distance_px,
            mean_distance_px=mean_distance_px, loss=loss,
        )  # fmt: skip
        solver = (GaussNewtonState if "jacobian" in tensors else AdamState).read(tensors)
        points = {name: tensors[name] for name in ("handles", "centers")}
        return cls(iteration=iteration, **points, best=best, mark_px=mark_px, since=since, solver=solver)


class Record:
    """How long the best mean distance has stood."""

    def __init__(self, gain_px: float, patience: int) -> None:
        self.gain_px, self.patience = gain_px, patience
        self.mark_px = math.inf
        self.since = 0

    def add(self, step: DragStep) -> None:
        if step.mean_distance_px <= self.mark_px - self.gain_px:
            self.mark_px, self.since = step.mean_distance_px, step.iteration

    def stalled(self, iteration: int) -> bool:
        return iteration - self.since >= self.patience


class DragRun:
    """The state of one drag between iterations; see `engine.drag.loop`."""

    def __init__(
        self, generator: Generator, w: Tensor, handles: Tensor, targets: Tensor, movable: Tensor | None, options: DragOptions
    ) -> None:
        """Raises InvalidEdit."""
        check_arguments(generator, w, handles, targets, movable, options)
        self.options = options
        self.resolution = generator.config.resolution
        self.scale = self.resolution / REFERENCE_RESOLUTION
        early = movable is not None and options.mask_term == "early"
        self.trunk = trunk_of(
            generator, feature_resolution(generator, options), rgb=early, precision=options.precision,
            windowed=movable is None or early,
        )  # fmt: skip
        self.watched = watched(generator, options, len(handles), movable is not None)
        like = generator.mapping.w_avg  # its device and floating type
        self.handles, self.targets = handles.to(like), targets.to(like)
        self.centers = self.handles  # where the next feature pass looks
        self.start = w.to(like).detach()
        self.mask = None if movable is None else self.mask_term(movable, early)
        self.region = choose_region(generator, self.start[:, : options.trainable_layers], options.latent_space)
        self.variable = self.region.origin.clone()
        self.solver = self.choose_solver(generator)
        self.varied = self.variable  # what gradients are of
        sparse = options.solver == "gauss-newton"  # slopes need not be known at every pixel
        spacing = min(SPACING, options.motion_radius / 3) if sparse else 1.0
        self.offsets = disc(options.motion_radius / spacing, spacing * self.scale, self.handles)  # [P, 2]
        self.memory: Memory | None = None  # from the first step on
        self.iteration = 0
        self.followed = 0  # the iteration whose handles are known
        self.loss = torch.zeros([])  # of the last step
        self.gradient: Tensor | Evidence | None = None  # what its solver takes, where that is known already
        self.differentiate: Callable[[], None] | None = None  # makes it known
        self.best: DragStep | None = None
        self.record = Record(STALLED_GAIN * self.scale, STALLED_ITERATIONS[options.solver])

    @property
    def kind(self) -> Hashable:
        """Drags of one kind can share their steps."""
        how = self.options
        tracking = how.tracking_radius, how.tracking_metric, how.subpixel
        watched = self.watched.until, self.watched.context, self.watched.reach  # how much whole is a matter of cost
        return self.trunk, *watched, self.mask is None, how.motion_radius, *tracking, how.overstep, how.solver

    def note(self, step: DragStep) -> StopReason | None:
        """A step that was made; whether it is the last."""
        if self.best is None or step.mean_distance_px <= self.best.mean_distance_px:
            self.best = step
        self.record.add(step)
        return stop_reason(step, self.record, self.options)

    def choose_solver(self, generator: Generator) -> ResumableAdam | GaussNewton:
        if self.options.solver == "adam":
            return ResumableAdam([self.variable.requires_grad_()], self.options.learning_rate, fused=True)
        return GaussNewton(self.variable, deviations(generator, self.region), len(self.handles), self.scale)

    def forget_step(self) -> None:
        """Give back what the last step keeps in memory; it can be made again."""
        self.loss, self.gradient, self.differentiate, self.varied = self.loss.detach(), None, None, self.variable

    def descend(self) -> None:
        """One step of the solver."""
        if self.gradient is None:
            assert self.differentiate is not None
            self.differentiate()
        if isinstance(self.solver, ResumableAdam):
            assert isinstance(self.gradient, Tensor)
            self.solver.step([self.gradient])
        else:
            assert isinstance(self.gradient, Evidence)
            moves = self.solver.take(self.gradient)
            self.handles = self.handles + torch.where(moves.isfinite(), moves, 0.0)  # until they are found
        self.gradient = self.differentiate = None
        self.centers = self.handles.clamp(0, self.resolution - 1)
        self.iteration += 1

    def state(self) -> DragState:
        """At the step just noted."""
        assert self.best is not None
        return DragState(
            iteration=self.iteration, handles=self.handles, centers=self.centers, best=self.best,
            mark_px=self.record.mark_px, since=self.record.since, solver=self.solver.state(),
        )  # fmt: skip

    def restore(self, state: DragState) -> None:
        """Go on from a state of a drag with the same arguments; its step comes once more."""
        with torch.no_grad():
            [self.memory] = memories([self], look([self]))
        self.forget_step()
        self.solver.restore(state.solver)  # type: ignore[arg-type]  # the same arguments chose the same solver
        self.iteration = self.followed = state.iteration
        self.handles, self.centers = state.handles.to(self.start), state.centers.to(self.start)
        self.best = replace(state.best, w=state.best.w.to(self.start), handles=state.best.handles)
        self.record.mark_px, self.record.since = state.mark_px, state.since

    def latent(self) -> Tensor:
        """w+ as it is now, [1, L, D]."""
        return self.whole(self.variable)

    def latents(self) -> Tensor:
        """The same for a feature pass; [K, L, D], one for each point, where each shall tell how it moves with w."""
        if isinstance(self.solver, GaussNewton):
            self.varied = self.solver.copies()
        return self.whole(self.varied)

    def whole(self, variable: Tensor) -> Tensor:
        fixed = self.start[:, self.options.trainable_layers :]
        return torch.cat([self.region.rows(variable), fixed.expand(len(variable), -1, -1)], dim=1)

    def mask_term(self, movable: Tensor, early: bool) -> MaskTerm:
        like = self.start
        shares = early_shares(movable, like) if early else paper_shares(movable, self.watched.until, like)
        return MaskTerm(self.trunk.synthesis, shares, early, self.options.mask_metric, self.options.mask_weight)

    def other_losses(self, held: list[Tensor]) -> Tensor:
        """Beside the motion of its points; held are the maps that the mask holds, now."""
        loss = self.start.new_zeros([])
        if self.mask is not None and self.memory is not None:
            loss = self.mask.loss(held, self.memory.held)
        if self.options.latent_weight == 0:
            return loss
        change = self.region.rows(self.variable) - self.start[:, : self.options.trainable_layers]
        return loss + change.abs().mean() * self.options.latent_weight


@dataclass(frozen=True, eq=False)
class Memory:
    """What everything looked like at the start of a drag."""

    reference: Tensor  # [K, C], each handle's look
    discs: Tensor  # [K, P, C], what was around it
    held: list[Tensor]  # what the mask penalizes the change of


class Look(NamedTuple):
    """What one feature pass of several drags shows."""

    maps: list[FeatureMap]  # around all their handles: the feature block, then coarser ones
    held: list[Tensor]  # what masks penalize the change of, [drags, ...]


def look(runs: Sequence[DragRun]) -> Look:
    """What is watched around the handles, and what the masks hold, of drags of one kind.

    One block's features are alike all along an edge, where points would slide; coarser ones know the place. Not with
    a mask: what it fixes holds the coarser features of a whole neighborhood, and with them the points.
    """
    one = max(runs, key=lambda run: run.watched.whole)  # where many points make whole maps cheaper
    modulations = one.trunk.modulations(torch.cat([run.latents() for run in runs]))
    centers = torch.cat([run.centers for run in runs])
    (fine, *coarse), blocks = watch(one.trunk.synthesis, modulations, one.watched, centers, one.resolution, owners(runs))
    maps = [fine, *(replace(other, values=other.values * CONTEXT_STRENGTH) for other in coarse)]
    return Look(maps, [] if one.mask is None else one.mask.held(blocks, modulations))


def owners(runs: Sequence[DragRun]) -> Tensor | None:
    """[K], which latent of their feature pass each of all their points belongs to; None: there is only one."""
    like, latents = runs[0].handles, 0
    found = []
    for run in runs:
        copies, points = len(run.varied), len(run.handles)
        first = like.new_full((points,), latents, dtype=torch.long)  # made where it is needed: nothing waits for the host
        found.append(first + torch.arange(points, device=like.device) if copies == points else first)
        latents += copies
    return None if latents == 1 else torch.cat(found)


def stop_reason(step: DragStep, record: Record, options: DragOptions) -> StopReason | None:
    if step.distance_px <= options.stop_distance:
        return "reached"
    if step.iteration >= options.max_iterations:
        return "max_iterations"
    return "stalled" if record.stalled(step.iteration) else None


def memories(runs: Sequence[DragRun], seen: Look) -> list[Memory]:
    """What each of these drags would remember of a look: copies, which keep nothing of the others in memory."""
    one, maps = runs[0], [each.detach() for each in seen.maps]
    handles, counts = torch.cat([run.handles for run in runs])[:, None], [len(run.handles) for run in runs]
    looks = torch.split(read(maps, handles, one.resolution)[:, 0], counts)
    discs = torch.split(read(maps, handles + one.offsets, one.resolution), counts)
    held = [[each[k : k + 1].detach().clone() for each in seen.held] for k in range(len(runs))]
    return [Memory(look.clone(), disc.clone(), kept) for look, disc, kept in zip(looks, discs, held, strict=True)]
