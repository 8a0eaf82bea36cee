"""Steps of several drags together: one feature pass, one search for all points, one read by the host."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.drag.features import FeatureMap, read
from engine.drag.gauss_newton import REFINED_PX, Evidence, GaussNewton, solve, surroundings
from engine.drag.options import tracking_pixels
from engine.drag.run import DragRun, DragStep, Look, Memory, look, memories
from engine.drag.tracking import track
from engine.errors import DragDiverged


class DragBatch:
    """Drags of one kind that make their steps together; each goes as it would alone, but for rounding."""

    def __init__(self, runs: Sequence[DragRun]) -> None:
        if len({run.kind for run in runs}) != 1:
            raise ValueError("only drags of one kind can make their steps together")
        self.runs = runs
        self.counts = [len(run.handles) for run in runs]
        self.targets = torch.cat([run.targets for run in runs])  # [K, 2], of all drags
        self.memory: Memory | None = None  # all drags', once they have seen something
        self.anchors = self.each(lambda run: run.options.anchor_distance * run.scale)  # [K] pixels
        self.stops = self.each(lambda run: run.options.stop_distance)  # [K] pixels

    def each(self, number: Callable[[DragRun], float]) -> Tensor:
        """[K], a drag's number for each of its points."""
        numbers = [number(run) for run, count in zip(self.runs, self.counts, strict=True) for _ in range(count)]
        return self.targets.new_tensor(numbers)

    def advance(self) -> DragStep:
        """The step of the only drag. Raises DragDiverged."""
        [step] = self.step()
        if isinstance(step, DragDiverged):
            raise step
        return step

    def step(self) -> list[DragStep | DragDiverged]:
        """Each drag's."""
        self.supervise()
        return self.tell()

    def supervise(self) -> None:
        """Track, then say what should change, on the same features."""
        maps, held = seen = look(self.runs)
        self.memory = self.memory or self.remember(seen)
        if any(run.iteration > run.followed for run in self.runs):
            self.move_on([one.detach() for one in maps])
        losses = self.motion_losses(maps)
        for k, run in enumerate(self.runs):
            run.loss = losses[k] + run.other_losses([one[k : k + 1] for one in held])
            run.gradient, run.differentiate = None, self.differentiate

    @torch.no_grad()
    def remember(self, seen: Look) -> Memory:
        """Those that begin with this step remember what they see; what all remember."""
        if any(run.memory is None for run in self.runs):
            for run, memory in zip(self.runs, memories(self.runs, seen), strict=True):
                run.memory = run.memory or memory
        known = [run.memory for run in self.runs if run.memory is not None]
        return Memory(torch.cat([one.reference for one in known]), torch.cat([one.discs for one in known]), [])

    def differentiate(self) -> None:
        """What every drag's solver takes, at once, so that each can descend when it likes."""
        gradients = torch.autograd.grad([run.loss for run in self.runs], [run.varied for run in self.runs])
        for run, gradient in zip(self.runs, gradients, strict=True):
            run.gradient, run.differentiate = gradient, None

    def move_on(self, maps: list[FeatureMap]) -> None:
        """Find the handles of those drags that have made a step since."""
        for run, found in zip(self.runs, torch.split(self.follow(maps), self.counts), strict=True):
            if run.iteration > run.followed:
                run.handles, run.followed = found, run.iteration

    def follow(self, maps: list[FeatureMap]) -> Tensor:
        """Where all handles are now, [K, 2] xy pixels; other trackers take its place to be compared."""
        one = self.runs[0]
        how, radius = one.options, tracking_pixels(one.options, one.resolution)
        assert self.memory is not None
        return track(
            maps, self.memory.reference, self.handles(), one.resolution,
            radius=radius, metric=how.tracking_metric, subpixel=how.subpixel,
        )  # fmt: skip

    def handles(self) -> Tensor:
        """[K, 2] xy pixels."""
        return torch.cat([run.handles for run in self.runs])

    def motion_losses(self, maps: list[FeatureMap]) -> list[Tensor]:
        """Descent moves the disc around each handle one pixel towards its target; summed over a drag's points on their way.

        What should come there is the disc as it looks now (the paper); near the target, as it looked at the start, so that
        what slid on the way is put right (the idea of GoodDrag, Zhang et al. 2025).
        """
        assert self.memory is not None
        one, handles = self.runs[0], self.handles()
        pulls, active = self.pull(handles)
        here = handles[:, None] + one.offsets  # [K, P, 2]
        near = (self.targets - handles).norm(dim=1) <= self.anchors
        with torch.no_grad():
            now = read(maps, here, one.resolution)
            wanted = torch.where(near[:, None, None], self.memory.discs, now)
        difference = (read(maps, here + pulls[:, None], one.resolution) - wanted).abs()  # [K, P, C]
        of_points = difference.mean(dim=(1, 2)).where(active, 0.0)
        return [part.sum() for part in torch.split(of_points, self.counts)]

    def pull(self, handles: Tensor) -> tuple[Tensor, Tensor]:
        """How far each point should go next, [K, 2] in image pixels, and which points are pulled, [K] bool.

        Whole pixels step over targets nearer than that, and points let go within the stop distance drift away again.
        """
        remaining = self.targets - handles
        distance = remaining.norm(dim=1)
        if self.runs[0].options.overstep:
            return F.normalize(remaining, dim=1), distance > self.stops
        return remaining / distance.clamp(min=1)[:, None], distance > 0

    def tell(self) -> list[DragStep | DragDiverged]:
        """The steps, whose numbers the host reads all at once."""
        handles = self.handles()
        distances = (self.targets - handles).norm(dim=1)
        losses = torch.stack([run.loss.detach() for run in self.runs])
        numbers = torch.cat([losses, distances, handles.flatten()]).cpu()
        sizes = [len(losses), len(distances), handles.numel()]
        losses, distances, places = torch.split(numbers, sizes)
        each = zip(torch.split(distances, self.counts), torch.split(places.view(-1, 2), self.counts), strict=True)
        return [say(run, loss, *seen) for run, loss, seen in zip(self.runs, losses.tolist(), each, strict=True)]


class GaussNewtonBatch(DragBatch):
    """The same with the steps of Gauss-Newton: what is around the points says how they move, there is no loss to descend."""

    def move_on(self, maps: list[FeatureMap]) -> None:
        """Also tell the solvers by how much more their points moved than they should."""
        expected = [run.handles for run in self.runs]
        super().move_on(maps)
        for run, handles in zip(self.runs, expected, strict=True):
            if run.handles is not handles and isinstance(run.solver, GaussNewton):
                run.solver.learn(run.handles - handles)

    def follow(self, maps: list[FeatureMap]) -> Tensor:
        """Near its target a point is seen more exactly by all that was around it at the start."""
        found = super().follow(maps)
        assert self.memory is not None
        one = self.runs[0]
        around = surroundings(maps, found, one.offsets, one.resolution)
        shift = around.shift(around.features - self.memory.discs)
        shift = shift * (REFINED_PX * one.scale / shift.norm(dim=1, keepdim=True)).clamp(max=1)
        near = (self.targets - found).norm(dim=1, keepdim=True) <= self.anchors[:, None]
        return torch.where(near, found + shift, found).clamp(0, one.resolution - 1)

    def motion_losses(self, maps: list[FeatureMap]) -> list[Tensor]:
        """How much what is around the points has changed, which nothing descends; what is there is kept for `differentiate`."""
        assert self.memory is not None
        one = self.runs[0]
        self.around = surroundings(maps, self.handles(), one.offsets, one.resolution)
        changes = (self.around.features.detach() - self.memory.discs).abs().mean(dim=(1, 2))
        return [part.sum() for part in torch.split(changes, self.counts)]

    def differentiate(self) -> None:
        due = [run for run in self.runs if run.varied.requires_grad]
        gradients = dict(zip(due, self.around.gradients([run.varied for run in due]), strict=True)) if due else {}
        sharpness, doubts = (torch.split(one, self.counts) for one in (self.around.sharpness, self.around.doubt))
        for run, sharp, doubt in zip(self.runs, sharpness, doubts, strict=True):
            jacobian = None
            if run in gradients:
                jacobian = -solve(sharp, gradients[run].flatten(2)).reshape(-1, *run.variable.shape[1:])
            run.gradient, run.differentiate = Evidence(run.targets - run.handles, doubt, jacobian), None
        del self.around  # and the step's maps with it


def say(run: DragRun, loss: float, distances: Tensor, handles: Tensor) -> DragStep | DragDiverged:
    """What a drag's step is."""
    if not math.isfinite(loss):
        return DragDiverged(f"the loss became {loss} at iteration {run.iteration}")
    rest = distances.tolist()
    return DragStep(
        iteration=run.iteration, w=run.latent().detach(), handles=handles, loss=loss, distance_px=max(rest),
        mean_distance_px=sum(rest) / len(rest),
    )  # fmt: skip
