"""DragGAN's loop (Pan et al., SIGGRAPH 2023): follow the handle points, then move them one step towards their targets.

Handles and targets are (x, y) in pixels of the model's image, pixel centers at integers. Radii are pixels of a
512-pixel image and scale with the model's resolution. The movable mask is True where pixels may change.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.descent import Descent, DescentState
from engine.errors import DragDiverged, InvalidEdit
from engine.features import FeatureMap, disc, read
from engine.generator import Generator, lowered, modulate
from engine.latent import choose_region
from engine.mask_term import EARLY_SIZE, MaskTerm, check_early, early_shares, paper_shares
from engine.tracking import track
from engine.windows import Watch, choose_watch, watch

StopReason = Literal["reached", "max_iterations", "stalled", "stopped"]
REFERENCE_RESOLUTION = 512  # radii are given at this image size
CONTEXT_STRENGTH = 0.5  # of the features of coarser blocks beside those of the feature block
SLACK_PX = 4.0  # a step, the refinement of handles, and the pixels that are blended
STALLED_ITERATIONS = 30
STALLED_GAIN = 0.1  # pixels at 512


@dataclass(frozen=True, kw_only=True)
class DragOptions:
    """How to drag. Symbols are the paper's (section 3.2)."""

    max_iterations: int = 200
    learning_rate: float = 0.002  # of Adam
    mask_weight: float = 20.0  # lambda
    motion_radius: float = 3.0  # r1, pixels at 512
    tracking_radius: float = 12.0  # r2, pixels at 512
    latent_space: str = "w+"  # w+: each row by itself; w: all alike; pca:K: alike, along the K principal directions of w
    trainable_layers: int = 6  # the first rows of w+; the others keep their values
    feature_resolution: int | None = None  # block to watch; None: 128, or the largest of at most half the image
    stop_distance: float = 1.0  # d, pixels of the image at any resolution
    latent_weight: float = 0.0  # of the mean change of w
    tracking_metric: Literal["l1", "l2"] = "l2"  # the paper says L1, its code L2
    mask_term: Literal["paper", "early"] = "paper"  # what a mask holds: the feature block, or all that the first rows change
    mask_metric: Literal["l1", "l2"] = "l1"  # of the change where the picture must stay; l2 forbids large ones, allows small
    subpixel: bool = True  # refine tracked handles below the pixel
    anchor_distance: float = 0.0  # pixels at 512: nearer to its target a point is pulled by what it looked like at the start
    context_blocks: int = 0  # coarser blocks watched beside the feature block, where no mask is given
    precision: Literal["float32", "bfloat16"] = "float32"  # of the convolutions; bfloat16 is twice as fast where it is native
    overstep: bool = True  # every step of a handle is a whole pixel; else at most what remains, and who arrived is held


@dataclass(frozen=True, kw_only=True)
class DragStep:
    """One iteration: the latent as it was, and where the handles are in its image."""

    iteration: int
    w: Tensor  # [1, L, D]
    handles: Tensor  # [K, 2] xy pixels
    distance_px: float  # largest distance of a handle to its target
    mean_distance_px: float  # of all handles; what the best step is chosen by, since one lost handle says little
    loss: float
    stop_reason: StopReason | None = None  # set on the result, which comes last


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
        w: where to start, [1, L, D].
        handles, targets: [K, 2] xy pixels; handles[i] is pulled towards targets[i].
        movable: [R, R] bool, True where the picture may change; None: everywhere.

    Raises:
        InvalidEdit: the arguments do not fit the generator or each other.
        DragDiverged: the loss became infinite or NaN.
    """
    yield from DragRun(generator, w, handles, targets, movable, options or DragOptions()).steps()


@dataclass(frozen=True, kw_only=True)
class DragState:
    """A copy of what a drag's next steps depend on beside its arguments, taken at a step."""

    iteration: int
    handles: Tensor  # [K, 2] xy pixels, at that step
    best: DragStep  # so far
    mark_px: float  # the record that makes it stall
    since: int  # the iteration that set it
    descent: DescentState

    def tensors(self) -> dict[str, Tensor]:
        """By names that `read` understands."""
        best, numbers = self.best, (self.best.distance_px, self.best.mean_distance_px, self.best.loss, self.mark_px)
        return self.descent.tensors() | {
            "handles": self.handles, "best.w": best.w, "best.handles": best.handles.clone(),
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
        descent = DescentState.read(tensors)
        return cls(iteration=iteration, handles=tensors["handles"], best=best, mark_px=mark_px, since=since, descent=descent)


class Look(NamedTuple):
    """What one feature pass shows."""

    maps: list[FeatureMap]  # around the handles: the feature block, then coarser ones
    held: list[Tensor]  # what the mask penalizes the change of


class DragRun:
    """The state of one drag between iterations; see `drag`."""

    def __init__(
        self, generator: Generator, w: Tensor, handles: Tensor, targets: Tensor, movable: Tensor | None, options: DragOptions
    ) -> None:
        """Raises InvalidEdit."""
        check_arguments(generator, w, handles, targets, movable, options)
        self.options = options
        self.resolution = generator.config.resolution
        self.scale = self.resolution / REFERENCE_RESOLUTION
        self.feature_resolution = feature_resolution(generator, options)
        self.synthesis = generator.synthesis
        if options.precision == "bfloat16":
            self.synthesis = lowered(self.synthesis, torch.bfloat16, self.feature_resolution)
        self.watched = watched(generator, options, len(handles), movable is not None)
        like = generator.mapping.w_avg  # its device and floating type
        self.handles, self.targets = handles.to(like), targets.to(like)
        self.origins = self.handles  # where the handles were at the start
        self.start = w.to(like).detach()
        self.mask = None if movable is None else self.mask_term(movable)
        self.region = choose_region(generator, self.start[:, : options.trainable_layers], options.latent_space)
        self.variable = self.region.origin.clone().requires_grad_()
        self.descent = Descent([self.variable], options.learning_rate)
        layers = self.synthesis.layers(until=self.feature_resolution, rgb=options.mask_term == "early")
        self.moving_layers = [layer for layer in layers if layer.row < options.trainable_layers]
        with torch.no_grad():
            self.energies = {name: layer.energy() for name, _, layer in self.moving_layers}
            self.constant = modulate([layer for layer in layers if layer.row >= options.trainable_layers], self.start)
            self.offsets = disc(options.motion_radius, self.scale, self.handles)  # [P, 2]
            self.first = self.look()
            self.reference = read(self.first.maps, self.handles[:, None], self.resolution)[:, 0]  # [K, C], each handle's look
            self.discs = read(self.first.maps, self.handles[:, None] + self.offsets, self.resolution)  # [K, P, C]
        self.iteration = 0
        self.followed = 0  # the iteration whose handles are known
        self.loss = torch.zeros([])
        self.best: DragStep | None = None
        self.record = Record(STALLED_GAIN * self.scale)

    def steps(self) -> Iterator[DragStep]:
        """Advance until there is a reason to stop; ends with the best step once more. Raises DragDiverged."""
        while True:
            step = self.step()
            if self.best is None or step.mean_distance_px <= self.best.mean_distance_px:
                self.best = step
            self.record.add(step)
            yield step
            if reason := stop_reason(step, self.record, self.options):
                yield replace(self.best, stop_reason=reason)
                return
            self.descend()

    def state(self) -> DragState:
        """At the step just yielded."""
        assert self.best is not None
        return DragState(
            iteration=self.iteration, handles=self.handles, best=self.best, mark_px=self.record.mark_px,
            since=self.record.since, descent=self.descent.state(),
        )  # fmt: skip

    def restore(self, state: DragState) -> None:
        """Go on from a state of a drag with the same arguments; its step comes once more."""
        self.descent.restore(state.descent)
        self.iteration = self.followed = state.iteration
        self.handles = state.handles.to(self.start)
        self.best = replace(state.best, w=state.best.w.to(self.start), handles=state.best.handles.to(self.start))
        self.record.mark_px, self.record.since = state.mark_px, state.since

    def latent(self) -> Tensor:
        """w+ as it is now, [1, L, D]."""
        rows = self.options.trainable_layers
        return torch.cat([self.region.rows(self.variable), self.start[:, rows:]], dim=1)

    def look(self) -> Look:
        """What is watched around the handles, and what the mask holds.

        One block's features are alike all along an edge, where points would slide; coarser ones know the place. Not with
        a mask: what it fixes holds the coarser features of a whole neighborhood, and with them the points.
        """
        modulations = self.constant | modulate(self.moving_layers, self.latent(), self.energies)
        (fine, *coarse), blocks = watch(self.synthesis, modulations, self.watched, self.handles, self.resolution)
        maps = [fine, *(replace(one, values=one.values * CONTEXT_STRENGTH) for one in coarse)]
        return Look(maps, [] if self.mask is None else self.mask.held(blocks, modulations))

    def step(self) -> DragStep:
        """One feature pass: track, then supervise, on the same features."""
        look = self.look()
        if self.iteration > self.followed:
            self.handles, self.followed = self.follow([one.detach() for one in look.maps]), self.iteration
        self.loss = self.motion_loss(look.maps) + self.mask_loss(look.held) + self.latent_loss()
        loss = self.loss.item()
        if not math.isfinite(loss):
            raise DragDiverged(f"the loss became {loss} at iteration {self.iteration}")
        distances = (self.targets - self.handles).norm(dim=1)
        return DragStep(
            iteration=self.iteration,
            w=self.latent().detach(),
            handles=self.handles,
            distance_px=distances.max().item(),
            mean_distance_px=distances.mean().item(),
            loss=loss,
        )

    def follow(self, maps: list[FeatureMap]) -> Tensor:
        """Where the handles are now, [K, 2] xy pixels; other trackers take its place to be compared."""
        how = self.options
        return track(
            maps, self.reference, self.handles, self.resolution,
            radius=tracking_pixels(how, self.resolution), metric=how.tracking_metric, subpixel=how.subpixel,
        )  # fmt: skip

    def descend(self) -> None:
        """One step of the optimizer."""
        self.descent.step(self.loss)
        self.iteration += 1

    def motion_loss(self, maps: list[FeatureMap]) -> Tensor:
        """Descent moves the disc around each handle one pixel towards its target; summed over the points on their way.

        What should come there is the disc as it looks now (the paper); near the target, as it looked at the start, so that
        what slid on the way is put right (the idea of GoodDrag, Zhang et al. 2025).
        """
        steps, active = self.pull()
        here = self.handles[:, None] + self.offsets  # [K, P, 2]
        near = (self.targets - self.handles).norm(dim=1) <= self.options.anchor_distance * self.scale
        with torch.no_grad():
            now = read(maps, here, self.resolution)
            wanted = torch.where(near[:, None, None], self.discs, now)
        difference = (wanted - read(maps, here + steps[:, None], self.resolution)).abs()  # [K, P, C]
        return difference.mean(dim=(1, 2))[active].sum()

    def pull(self) -> tuple[Tensor, Tensor]:
        """How far each point should go next, [K, 2] in image pixels, and which points are pulled, [K] bool.

        Whole pixels step over targets nearer than that, and points let go within the stop distance drift away again.
        """
        remaining = self.targets - self.handles
        distance = remaining.norm(dim=1)
        if self.options.overstep:
            return F.normalize(remaining, dim=1), distance > self.options.stop_distance
        return remaining / distance.clamp(min=1)[:, None], distance > 0

    def mask_loss(self, held: list[Tensor]) -> Tensor:
        return self.start.new_zeros([]) if self.mask is None else self.mask.loss(held, self.first.held)

    def mask_term(self, movable: Tensor) -> MaskTerm:
        early, like = self.options.mask_term == "early", self.start
        shares = early_shares(movable, like) if early else paper_shares(movable, self.feature_resolution, like)
        return MaskTerm(self.synthesis, shares, early, self.options.mask_metric, self.options.mask_weight)

    def latent_loss(self) -> Tensor:
        if self.options.latent_weight == 0:
            return self.start.new_zeros([])
        rows = self.options.trainable_layers
        change = self.region.rows(self.variable) - self.start[:, :rows]
        return change.abs().mean() * self.options.latent_weight


def tracking_pixels(options: DragOptions, resolution: int) -> int:
    """How far from where a handle was it is looked for."""
    return max(1, round(options.tracking_radius * resolution / REFERENCE_RESOLUTION))


def reach_px(options: DragOptions, resolution: int) -> float:
    """How far from where a handle was features are read: it is found anew, then its disc is read, and that one step on."""
    return tracking_pixels(options, resolution) + options.motion_radius * resolution / REFERENCE_RESOLUTION + SLACK_PX


class Record:
    """How long the best mean distance has stood."""

    def __init__(self, gain_px: float) -> None:
        self.gain_px = gain_px
        self.mark_px = math.inf
        self.since = 0

    def add(self, step: DragStep) -> None:
        if step.mean_distance_px <= self.mark_px - self.gain_px:
            self.mark_px, self.since = step.mean_distance_px, step.iteration

    def stalled(self, iteration: int) -> bool:
        return iteration - self.since >= STALLED_ITERATIONS


def stop_reason(step: DragStep, record: Record, options: DragOptions) -> StopReason | None:
    if step.distance_px <= options.stop_distance:
        return "reached"
    if step.iteration >= options.max_iterations:
        return "max_iterations"
    return "stalled" if record.stalled(step.iteration) else None


def feature_resolution(generator: Generator, options: DragOptions) -> int:
    """The block whose features are used: 128, or the largest of at most half the image for smaller models."""
    return options.feature_resolution or min(128, generator.config.resolution // 2)


def watched(generator: Generator, options: DragOptions, points: int, masked: bool) -> Watch:
    """The paper's mask needs the feature block whole; the early one the blocks before its layers."""
    until, resolution = feature_resolution(generator, options), generator.config.resolution
    reach = reach_px(options, resolution) * until / resolution
    if not masked:
        return choose_watch(generator.config, until, options.context_blocks, reach, points)
    if options.mask_term == "paper":
        return Watch(until, 0, until, reach)
    return choose_watch(generator.config, until, 0, reach, points, least=EARLY_SIZE // 2)


def check_arguments(
    generator: Generator, w: Tensor, handles: Tensor, targets: Tensor, movable: Tensor | None, options: DragOptions
) -> None:
    config = generator.config
    if w.shape != (1, config.num_ws, config.w_dim):
        raise InvalidEdit(f"w must be [1, {config.num_ws}, {config.w_dim}], got {list(w.shape)}")
    if handles.ndim != 2 or handles.shape[1] != 2 or handles.shape != targets.shape or len(handles) == 0:
        raise InvalidEdit(
            f"handles and targets must both be [K, 2] with K >= 1, got {list(handles.shape)} and {list(targets.shape)}"
        )
    for name, points in (("handles", handles), ("targets", targets)):
        if not ((points >= 0) & (points <= config.resolution - 1)).all():
            raise InvalidEdit(f"{name} must lie in the image, 0 to {config.resolution - 1} pixels, got {points.tolist()}")
    if movable is not None and (movable.dtype != torch.bool or movable.shape != (config.resolution, config.resolution)):
        raise InvalidEdit(f"movable must be bool [{config.resolution}, {config.resolution}]")
    if movable is not None and not movable.any():
        raise InvalidEdit("movable is False everywhere: nothing may change")
    if not 1 <= options.trainable_layers <= config.num_ws:
        raise InvalidEdit(f"trainable_layers must be 1 to {config.num_ws}, got {options.trainable_layers}")
    if movable is not None and options.mask_term == "early":
        check_early(config, options.trainable_layers, feature_resolution(generator, options))
    if options.feature_resolution not in (None, *config.block_resolutions):
        raise InvalidEdit(f"feature_resolution must be one of {config.block_resolutions}, got {options.feature_resolution}")


def to_points(points: np.ndarray | list[tuple[float, float]]) -> Tensor:
    """xy pixels as a [K, 2] tensor."""
    return torch.as_tensor(np.asarray(points, dtype=np.float64)).reshape(-1, 2)
