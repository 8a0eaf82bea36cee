"""The solver of the preset `fast`: Gauss-Newton steps, by how every point moves with w. Adam goes a little downhill instead.

When the features F around a point change by dF, what is there moves by the u for which G u + dF is least; G are the slopes of
F (Lucas and Kanade 1981). Differentiating G F along x and along y therefore says how the point moves with w. A step goes to
the mode of a Gaussian: the w at which the points come nearest to where they should be next, each trusted less along an edge than
across it, and which is likely, as w is distributed, around the start. The Jacobian is renewed every few steps. Between renewals
it learns from how the points really moved (Broyden 1965).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.drag.features import FeatureMap, read_features
from engine.drag.iteration_data import Points
from engine.drag.options import REFERENCE_RESOLUTION

RENEWED_EVERY = 3  # steps; a Jacobian costs three feature passes of the coarse blocks for each point
LONGEST_PX = 8.0  # of a point's step, at 512
NOISE_PX = 1.0  # standard deviation of where one point is seen, at 512
REFINED_PX = 4.0  # by which the disc around a point may correct where it was tracked, at 512
SLOPE_PX = 4.0  # distance over which slopes are taken, at 512
SPACING = 4.0  # largest distance between the places of a disc that are read, pixels at 512
SHORTEST = 0.01  # standard deviations of w; shorter steps teach less
FLAT = 1e-3  # share of a point's mean sharpness that every direction has
LEAST = 1e-9  # sharpness where all features are alike


@dataclass(frozen=True, eq=False)
class PointEvidence:
    """What an iteration shows of a drag's K points."""

    remaining: Tensor  # [K, 2] pixels, from where the points are to their targets
    covariance: Tensor  # [K, 2, 2], of where each point is seen, for a noise of 1; the identity if it is sharp all around
    jacobian: Tensor | None  # [2K, R, V] pixels for each number of the variable; None where it was not asked for


@dataclass(frozen=True)
class GaussNewtonState:
    """What the next steps depend on; equal states go on alike."""

    offset: Tensor  # [R V], from the start, standard deviations of w
    jacobian: Tensor  # [2K, R V], pixels of the points for each number of the offset
    last: Tensor  # [R V], the step before
    age: int  # steps taken with this Jacobian

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by names that `read` understands."""
        return {"offset": self.offset, "jacobian": self.jacobian, "last": self.last, "age": torch.tensor(self.age)}

    @classmethod
    def read(cls, tensors: dict[str, Tensor]) -> "GaussNewtonState":
        """Return the state of such tensors. Raises KeyError."""
        return cls(tensors["offset"], tensors["jacobian"], tensors["last"], int(tensors["age"]))


class GaussNewton:
    """One drag's variable, and what is known of how its points move with it. Lengths in w are standard deviations."""

    def __init__(self, variable: Tensor, deviations: Tensor, points: int, scale: float) -> None:
        """Create the solver of a drag that starts.

        Args:
            variable: [1, R, V], which steps change.
            deviations: [V, V], in each row a standard deviation of the variable along a principal direction.
            points: number of points, K.
            scale: pixels of the image for one pixel at 512.
        """
        self.variable, self.origin, self.deviations = variable, variable.clone(), deviations
        self.longest_px = LONGEST_PX * scale
        self.noise_px = NOISE_PX * scale * points**0.5  # what misleads one point misleads its neighbors too
        self.offset = variable.new_zeros(variable.numel())  # from the origin
        self.jacobian = variable.new_zeros(2 * points, variable.numel())  # pixels for each number of the offset
        self.last = torch.zeros_like(self.offset)  # the step before
        self.age = RENEWED_EVERY  # steps taken with this Jacobian

    def pass_variables(self) -> Tensor:
        """Return [k, R, V] for the next feature pass: a copy for each point when a new Jacobian is due, else one."""
        due = self.age >= RENEWED_EVERY
        return self.variable.repeat(len(self.jacobian) // 2 if due else 1, 1, 1).requires_grad_(due)

    def step(self, seen: PointEvidence) -> Tensor:
        """Take one step. Return by how much it should move the points, [K, 2] pixels."""
        if seen.jacobian is not None:
            self.jacobian, self.age = (seen.jacobian @ self.deviations.t()).flatten(1), 0  # [2K, R V]
        self.age += 1
        way = seen.remaining * (self.longest_px / seen.remaining.norm(dim=1, keepdim=True)).clamp(max=1)  # [K, 2]
        wanted = way.flatten() + self.jacobian @ self.offset  # [2K]
        spread = self.jacobian @ self.jacobian.t() + block_diagonal(seen.covariance) * self.noise_px**2  # [2K, 2K]
        offset = self.jacobian.t() @ solve(spread, wanted)  # [R V]
        self.last, self.offset = offset - self.offset, offset
        rows = offset.view(-1, len(self.deviations)) @ self.deviations
        self.variable.copy_(self.origin + rows)
        return (self.jacobian @ self.last).view(-1, 2)

    def learn(self, surprise: Tensor) -> None:
        """Learn by how much more than it should the last step moved the points, [K, 2] pixels."""
        length = self.last.square().sum().clamp(min=SHORTEST**2)
        self.jacobian = self.jacobian + torch.outer(surprise.flatten(), self.last / length)

    def state(self) -> GaussNewtonState:
        return GaussNewtonState(self.offset, self.jacobian, self.last, self.age)  # none of them is ever changed in place

    def restore(self, state: GaussNewtonState) -> None:
        self.offset, self.jacobian, self.last = (each.to(self.origin) for each in (state.offset, state.jacobian, state.last))
        self.age = state.age
        self.variable.copy_(self.origin + self.offset.view(-1, len(self.deviations)) @ self.deviations)


class GaussNewtonObjective:
    """What Gauss-Newton asks of an iteration: how the points move with w. There is no loss to descend."""

    def __init__(self) -> None:
        self.surroundings: Surroundings | None = None  # of the last iteration, until its updates are computed

    def refine_handles(self, maps: list[FeatureMap], points: Points) -> Tensor:
        """Return the handles [K, 2]; near its target a point is seen more exactly by the whole disc around it."""
        found = points.handles
        around = read_surroundings(maps, points)
        shift = around.shift(around.features - points.reference.discs)
        longest = REFINED_PX * (points.resolution / REFERENCE_RESOLUTION)
        shift = shift * (longest / shift.norm(dim=1, keepdim=True)).clamp(max=1)
        return torch.where(points.anchored[:, None], found + shift, found).clamp(0, points.resolution - 1)

    def point_losses(self, maps: list[FeatureMap], points: Points) -> Tensor:
        """Return [K], how much the disc around each point has changed, which nothing descends."""
        self.surroundings = read_surroundings(maps, points)
        return (self.surroundings.features.detach() - points.reference.discs).abs().mean(dim=(1, 2))

    def updates(self, losses: Sequence[Tensor], variables: Sequence[Tensor], points: Points) -> list[PointEvidence]:
        """Return the evidence of each drag; a Jacobian for those whose variables [k, R, V] are copies for their points."""
        assert self.surroundings is not None
        around, self.surroundings = self.surroundings, None  # lets go of the maps of the feature pass
        due = [variable for variable in variables if variable.requires_grad]
        gradients = iter(around.gradients(due) if due else [])
        remaining, sharpness, covariance = (
            torch.split(each, points.counts) for each in (points.targets - points.handles, around.sharpness, around.covariance)
        )
        found = []
        for k, variable in enumerate(variables):
            jacobian = None
            if variable.requires_grad:
                moved = -solve(sharpness[k], next(gradients).flatten(2))  # [k, 2, R V]
                jacobian = moved.reshape(-1, *variable.shape[1:])  # [2k, R, V]
            found.append(PointEvidence(remaining[k], covariance[k], jacobian))
        return found


class Surroundings(NamedTuple):
    """What is around K points."""

    features: Tensor  # [K, P, C]
    slopes: Tensor  # [K, 2, P, C], the change of the features over one pixel along x and y
    sharpness: Tensor  # [K, 2, 2], how much the features differ one pixel further, squared and summed

    @property
    def covariance(self) -> Tensor:
        """The covariance [K, 2, 2] of where each point is: larger along an edge; the identity where it is sharp all around."""
        mean = self.sharpness.diagonal(dim1=1, dim2=2).mean(dim=1)
        covariance: Tensor = torch.linalg.inv_ex(self.sharpness).inverse * mean[:, None, None]
        return covariance

    def shift(self, change: Tensor) -> Tensor:
        """Return [K, 2] pixels by which the discs have moved if their features changed by [K, P, C]."""
        return -solve(self.sharpness, torch.einsum("kipc,kpc->ki", self.slopes, change)[..., None])[..., 0]

    def gradients(self, variables: list[Tensor]) -> list[Tensor]:
        """Return the gradients of the features along their slopes: [k, 2, R, V] for k copies [k, R, V] of a variable."""
        along = torch.einsum("kipc,kpc->i", self.slopes, self.features)  # [2]: copies do not mix
        x, y = (torch.autograd.grad(along[axis], variables, retain_graph=axis == 0) for axis in (0, 1))
        return [torch.stack(both, dim=1) for both in zip(x, y, strict=True)]


def read_surroundings(maps: list[FeatureMap], points: Points) -> Surroundings:
    """Read the discs around the points, and their slopes."""
    places = points.handles[:, None] + points.offsets  # [K, P, 2]
    with torch.no_grad():
        steps = torch.eye(2, dtype=places.dtype, device=places.device) * (SLOPE_PX * points.resolution / REFERENCE_RESOLUTION)
        ahead, back = (
            torch.stack([read_features(maps, places + sign * step, points.resolution) for step in steps], dim=1)
            for sign in (1, -1)
        )  # [K, 2, P, C] each
        slopes = (ahead - back) / (2 * steps[0, 0])
        sharpness = torch.einsum("kipc,kjpc->kij", slopes, slopes)  # [K, 2, 2]
        least = (sharpness.diagonal(dim1=1, dim2=2).mean(dim=1) * FLAT).clamp(min=LEAST)
        sharpness = sharpness + torch.diag_embed(least[:, None].expand(-1, 2))
    return Surroundings(read_features(maps, places, points.resolution), slopes, sharpness)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return the solution, not a number where there is none: the next step then says that the drag diverged."""
    solution: Tensor = torch.linalg.solve_ex(matrix, right).result
    return solution


def block_diagonal(squares: Tensor) -> Tensor:
    """Return [2K, 2K] with the squares [K, 2, 2] along its diagonal."""
    places = torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    return (places[:, None, :, None] * squares[:, :, None]).flatten(2).flatten(0, 1)
