"""One drag between its iterations: where it is, what it started from, what it needs to go on."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from engine.drag.arguments import check_arguments
from engine.drag.feature_pass import compute_features, plan_features
from engine.drag.features import disc_offsets
from engine.drag.iteration_data import Reference, capture_references
from engine.drag.latent import parameterize
from engine.drag.mask_term import MaskTerm, early_shares, feature_block_shares
from engine.drag.options import REFERENCE_RESOLUTION, DragOptions
from engine.drag.solvers import SOLVERS, SolverState, read_solver_state
from engine.networks.frozen_synthesis import frozen_synthesis
from engine.networks.stylegan2 import Generator

StopReason = Literal["reached", "max_iterations", "stalled", "stopped"]
STALLED_GAIN = 0.1  # pixels at 512


@dataclass(frozen=True, kw_only=True)
class DragStep:
    """One iteration: the latent as it was, and where the handles are in its image."""

    iteration: int
    w: Tensor  # [1, L, D]
    handles: Tensor  # [K, 2] xy pixels, on the CPU
    distance_px: float  # largest distance of a handle to its target
    mean_distance_px: float  # of all handles; the best step has the least, since one lost handle says little
    loss: float
    stop_reason: StopReason | None = None  # set on the result, which comes last


@dataclass(frozen=True, kw_only=True)
class DragState:
    """A copy of what a drag's next iterations depend on beside its arguments, taken at a step."""

    iteration: int
    handles: Tensor  # [K, 2] xy pixels, at that step
    centers: Tensor  # [K, 2] xy pixels, around which that step computed features
    best: DragStep  # so far
    mark_px: float  # the mean distance that the stall detector compares with
    since: int  # the iteration that set it
    solver: SolverState

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by names that `read` understands."""
        best, numbers = self.best, (self.best.distance_px, self.best.mean_distance_px, self.best.loss, self.mark_px)
        return self.solver.tensors() | {
            "handles": self.handles, "centers": self.centers.clone(), "best.w": best.w, "best.handles": best.handles.clone(),
            "iterations": torch.tensor([self.iteration, best.iteration, self.since]),
            "numbers": torch.tensor(numbers, dtype=torch.float64),
        }  # fmt: skip

    @classmethod
    def read(cls, tensors: dict[str, Tensor]) -> "DragState":
        """Return the state of such tensors. Raises KeyError."""
        iteration, best_iteration, since = tensors["iterations"].tolist()
        distance_px, mean_distance_px, loss, mark_px = tensors["numbers"].tolist()
        best = DragStep(
            iteration=best_iteration, w=tensors["best.w"], handles=tensors["best.handles"], distance_px=distance_px,
            mean_distance_px=mean_distance_px, loss=loss,
        )  # fmt: skip
        points = {name: tensors[name] for name in ("handles", "centers")}
        return cls(iteration=iteration, **points, best=best, mark_px=mark_px, since=since, solver=read_solver_state(tensors))


class StallDetector:
    """How long the best mean distance has not improved by more than a gain."""

    def __init__(self, gain_px: float, patience: int) -> None:
        """Create the detector.

        Args:
            gain_px: pixels of the image by which the mean distance must improve to count.
            patience: iterations without such a gain after which the drag is stalled.
        """
        self.gain_px, self.patience = gain_px, patience
        self.mark_px = math.inf
        self.since = 0

    def add(self, step: DragStep) -> None:
        if step.mean_distance_px <= self.mark_px - self.gain_px:
            self.mark_px, self.since = step.mean_distance_px, step.iteration

    def stalled(self, iteration: int) -> bool:
        return iteration - self.since >= self.patience

    def restore(self, mark_px: float, since: int) -> None:
        self.mark_px, self.since = mark_px, since


class DragRun:
    """The state of one drag between iterations; `engine.drag.loop` iterates it. Only its own methods change it."""

    def __init__(
        self, generator: Generator, w: Tensor, handles: Tensor, targets: Tensor, movable: Tensor | None, options: DragOptions
    ) -> None:
        """Prepare a drag; the arguments are those of `engine.drag.loop.drag`. Raises InvalidEdit."""
        config, masked = generator.config, movable is not None
        check_arguments(config, w, handles, targets, movable, options)
        self.options = options
        self.resolution = config.resolution
        self.scale = self.resolution / REFERENCE_RESOLUTION
        self.plan = plan_features(config, options, len(handles), masked)
        early = masked and options.mask_term == "early"
        self.synthesis = frozen_synthesis(
            generator, self.plan.until, rgb=early, precision=options.precision, windowed=not masked or early
        )
        like = generator.mapping.w_avg  # its device and floating type
        self.handles, self.targets = handles.to(like), targets.to(like)
        self.centers = self.handles  # around which the next feature pass computes features
        self.start = w.to(like).detach()
        self.mask = None if movable is None else self.make_mask_term(movable, early=early)
        self.latents = parameterize(generator, self.start[:, : options.trainable_layers], options.latent_space)
        kind = SOLVERS[options.solver]
        self.solver = kind.create(generator, self.latents, options, len(handles), self.scale)
        spacing = kind.disc_spacing(options)
        self.offsets = disc_offsets(options.motion_radius / spacing, spacing * self.scale, self.handles)  # [P, 2]
        self.reference: Reference | None = None  # from the first iteration on
        self.iteration = 0
        self.tracked = 0  # the iteration whose handles are known
        self.best: DragStep | None = None
        self.stall = StallDetector(STALLED_GAIN * self.scale, kind.patience)

    def make_mask_term(self, movable: Tensor, *, early: bool) -> MaskTerm:
        like = self.start
        shares = early_shares(movable, like) if early else feature_block_shares(movable, self.plan.until, like)
        return MaskTerm(self.synthesis.network, shares, early, self.options.mask_metric, self.options.mask_weight)

    @property
    def batch_key(self) -> Hashable:
        """Drags of equal keys can share their iterations. How much a plan computes whole is a matter of cost only."""
        options, plan = self.options, self.plan
        watched = plan.until, plan.context, plan.reach
        tracking = options.tracking_radius, options.tracking_metric, options.subpixel
        return self.synthesis, *watched, self.mask is None, options.motion_radius, *tracking, options.overstep, options.solver

    @property
    def moved(self) -> bool:
        """Whether the variable has taken a step since the handles were tracked."""
        return self.iteration > self.tracked

    def w_plus(self, variable: Tensor) -> Tensor:
        """Return the w+ [k, L, D] that a variable [k, R, V] stands for."""
        fixed = self.start[:, self.options.trainable_layers :]
        return torch.cat([self.latents.rows(variable), fixed.expand(len(variable), -1, -1)], dim=1)  # [k, L, D]

    def current_w(self) -> Tensor:
        """Return w+ [1, L, D] as it is now, without its graph."""
        return self.w_plus(self.solver.variable).detach()

    def latent_term(self) -> Tensor | None:
        """Return the penalty on the mean change of the trainable rows; None where it has no weight."""
        if self.options.latent_weight == 0:
            return None
        change = self.latents.rows(self.solver.variable) - self.start[:, : self.options.trainable_layers]
        return change.abs().mean() * self.options.latent_weight

    def accept_tracking(self, reference: Reference, handles: Tensor) -> None:
        """Take over what an iteration found: the drag's look at its start, and its handles [K, 2]."""
        self.reference = self.reference or reference
        if self.moved:
            self.solver.learn(handles - self.handles)
            self.handles, self.tracked = handles, self.iteration

    def record(self, step: DragStep) -> None:
        """Note a step that was made, which may be the best so far."""
        if self.best is None or step.mean_distance_px <= self.best.mean_distance_px:
            self.best = step
        self.stall.add(step)

    def take_step(self, update: Any) -> None:
        """Let the solver take one step by what its objective computed."""
        moves = self.solver.step(update)
        if moves is not None:
            self.handles = self.handles + torch.where(moves.isfinite(), moves, 0.0)  # until they are tracked
        self.centers = self.handles.clamp(0, self.resolution - 1)
        self.iteration += 1

    def state(self) -> DragState:
        """Return the state at the step that was recorded last."""
        assert self.best is not None
        return DragState(
            iteration=self.iteration, handles=self.handles, centers=self.centers, best=self.best,
            mark_px=self.stall.mark_px, since=self.stall.since, solver=self.solver.state(),
        )  # fmt: skip

    def restore(self, state: DragState) -> None:
        """Go on from a state of a drag with the same arguments; its step comes once more."""
        self.reference = self.capture_reference()  # at the start, where this drag still is
        self.solver.restore(state.solver)
        self.iteration = self.tracked = state.iteration
        self.handles, self.centers = state.handles.to(self.start), state.centers.to(self.start)
        self.best = replace(state.best, w=state.best.w.to(self.start), handles=state.best.handles)
        self.stall.restore(state.mark_px, state.since)

    @torch.no_grad()
    def capture_reference(self) -> Reference:
        """Return what the drag looks like now."""
        variables = self.solver.pass_variables()
        copies, points = len(variables), len(self.handles)
        owner = torch.arange(points, device=self.start.device) if copies > 1 else None
        features = compute_features(self.synthesis, self.plan, self.w_plus(variables), self.centers, self.resolution, owner)
        held = [] if self.mask is None else self.mask.held_maps(features.blocks, features.modulations)
        [reference] = capture_references(features.maps, held, self.handles, [points], self.offsets, self.resolution)
        return reference
