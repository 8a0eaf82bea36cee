"""The paper's solver: motion supervision (Pan et al., section 3.2), whose gradient Adam descends."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.drag.features import FeatureMap, read_features
from engine.drag.iteration_data import Points
from engine.resumable_adam import AdamState, ResumableAdam


class AdamSolver:
    """One drag's variable [1, R, V] and its Adam."""

    def __init__(self, variable: Tensor, learning_rate: float) -> None:
        self.variable = variable.requires_grad_()
        self.adam = ResumableAdam([self.variable], learning_rate, fused=True)

    def pass_variables(self) -> Tensor:
        """Return the variable itself: one feature pass for all points."""
        return self.variable

    def step(self, gradient: Tensor) -> None:
        """Take one step down the gradient [1, R, V]."""
        self.adam.step([gradient])

    def learn(self, surprise: Tensor) -> None:
        """Learn nothing from where the points went."""

    def state(self) -> AdamState:
        return self.adam.state()

    def restore(self, state: AdamState) -> None:
        self.adam.restore(state)


class MotionSupervision:
    """The loss whose descent moves the disc around each handle one step towards its target."""

    def __init__(self, *, overstep: bool) -> None:
        """Create the objective.

        Args:
            overstep: every step of a point is a whole pixel (the paper); else it is at most what remains.
        """
        self.overstep = overstep

    def refine_handles(self, maps: list[FeatureMap], points: Points) -> Tensor:
        """Return the handles [K, 2] as tracking found them."""
        return points.handles

    def point_losses(self, maps: list[FeatureMap], points: Points) -> Tensor:
        """Return the loss [K] of each point.

        The disc one step on should look like the disc does now (the paper). An anchored point should look as it did at the
        start, so that what slid on the way is put right (GoodDrag, Zhang et al. 2025).
        """
        vectors, active = motion_vectors(points, overstep=self.overstep)
        here = points.handles[:, None] + points.offsets  # [K, P, 2]
        with torch.no_grad():
            now = read_features(maps, here, points.resolution)  # [K, P, C]
            wanted = torch.where(points.anchored[:, None, None], points.reference.discs, now)
        ahead = read_features(maps, here + vectors[:, None], points.resolution)  # [K, P, C]
        return (ahead - wanted).abs().mean(dim=(1, 2)).where(active, 0.0)  # [K]

    def updates(self, losses: Sequence[Tensor], variables: Sequence[Tensor], points: Points) -> list[Tensor]:
        """Return the gradient of each drag's loss along its variable."""
        return list(torch.autograd.grad(list(losses), list(variables)))


def motion_vectors(points: Points, *, overstep: bool) -> tuple[Tensor, Tensor]:
    """Return how far each point should go next, [K, 2] pixels of the image, and which points are pulled, [K] bool.

    Whole pixels step over targets that are nearer than that, and points that are let go within the stop distance drift away.
    """
    remaining = points.targets - points.handles
    distance = remaining.norm(dim=1)
    if overstep:
        return F.normalize(remaining, dim=1), distance > points.stop_px
    return remaining / distance.clamp(min=1)[:, None], distance > 0
