"""Steps that go as far as they should: by how every point moves with w (Gauss-Newton), where Adam goes a little downhill.

When the features F around a point change by dF, what is there moves by the u for which G u + dF is least; G are the slopes of
F (Lucas and Kanade 1981). Differentiating G F along x and along y therefore says how the point moves with w. A step goes to
the mode of a Gaussian: the w at which the points come nearest to where they should be next, each trusted less along an edge than
across it, and which is likely, as w is distributed, around the start. The Jacobian is made anew every few steps;
background_thread it learns from how the points really moved (Broyden 1965).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.drag.features import FeatureMap, read

RENEWED_EVERY = 3  # steps; a Jacobian costs three feature passes of the coarse blocks for each point
LONGEST_PX = 8.0  # of a point's step, at 512
NOISE_PX = 1.0  # standard deviation of where one point is seen, at 512
REFINED_PX = 4.0  # by which what is around a point may correct where it was found, at 512
SLOPE_PX = 4.0  # distance from which slopes are taken, at 512
SPACING = 4.0  # pixels between the places around a point that are looked at, at most, at 512
SHORTEST = 0.01  # standard deviations; shorter steps teach less
FLAT = 1e-3  # share of a point's mean sharpness that every direction has
LEAST = 1e-9  # of it, where all is alike


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a step shows of a drag's K points."""

    rest: Tensor  # [K, 2] pixels, from where they are to their targets
    doubt: Tensor  # [K, 2, 2], covariance of where each is seen, for a noise of 1; the identity if it is sharp all around
    jacobian: Tensor | None  # [2K, R, V] pixels for each number of the variable; None: it was not asked for


@dataclass(frozen=True)
class GaussNewtonState:
    """What the next steps depend on; equal states go on alike."""

    offset: Tensor  # [R V], from the start, standard deviations of w
    jacobian: Tensor  # [2K, R V], pixels for each of them
    last: Tensor  # [R V], the step before
    age: int  # steps made with this Jacobian

    def tensors(self) -> dict[str, Tensor]:
        """By names that `read` understands."""
        return {"offset": self.offset, "jacobian": self.jacobian, "last": self.last, "age": torch.tensor(self.age)}

    @classmethod
    def read(cls, tensors: dict[str, Tensor]) -> "GaussNewtonState":
        """Raises KeyError."""
        return cls(tensors["offset"], tensors["jacobian"], tensors["last"], int(tensors["age"]))


class GaussNewton:
    """The variable of a drag, and what is known of how its points move with it. Lengths in w are standard deviations."""

    def __init__(self, variable: Tensor, deviations: Tensor, points: int, scale: float) -> None:
        """
        Args:
            variable: [1, R, V], which steps change.
            deviations: [V, V], a standard deviation of the variable along each principal direction.
            scale: pixels of the image for one at 512.
        """
        self.variable, self.origin, self.deviations = variable, variable.clone(), deviations
        self.longest_px = LONGEST_PX * scale
        self.noise_px = NOISE_PX * scale * points**0.5  # what misleads one point misleads its neighbors too
        self.offset = variable.new_zeros(variable.numel())  # from the origin
        self.jacobian = variable.new_zeros(2 * points, variable.numel())  # pixels for each
        self.last = torch.zeros_like(self.offset)  # the step before
        self.age = RENEWED_EVERY  # steps made with this Jacobian

    def copies(self) -> Tensor:
        """Of the variable, for the next feature pass: one for each point when it is time for a new Jacobian, [k, R, V]."""
        due = self.age >= RENEWED_EVERY
        return self.variable.repeat(len(self.jacobian) // 2 if due else 1, 1, 1).requires_grad_(due)

    def take(self, seen: Evidence) -> Tensor:
        """One step; by how much it should move the points, [K, 2] pixels."""
        if seen.jacobian is not None:
            self.jacobian, self.age = (seen.jacobian @ self.deviations.t()).flatten(1), 0
        self.age += 1
        way = seen.rest * (self.longest_px / seen.rest.norm(dim=1, keepdim=True)).clamp(max=1)
        wanted = way.flatten() + self.jacobian @ self.offset
        spread = self.jacobian @ self.jacobian.t() + blocks(seen.doubt) * self.noise_px**2
        offset = self.jacobian.t() @ solve(spread, wanted)
        self.last, self.offset = offset - self.offset, offset
        rows = offset.view(-1, len(self.deviations)) @ self.deviations
        self.variable.copy_(self.origin + rows)
        return (self.jacobian @ self.last).view(-1, 2)

    def learn(self, surprise: Tensor) -> None:
        """By how much more than it should the last step moved the points, [K, 2] pixels."""
        length = self.last.square().sum().clamp(min=SHORTEST**2)
        self.jacobian = self.jacobian + torch.outer(surprise.flatten(), self.last / length)

    def state(self) -> GaussNewtonState:
        return GaussNewtonState(self.offset, self.jacobian, self.last, self.age)  # none of them is ever changed in place

    def restore(self, state: GaussNewtonState) -> None:
        self.offset, self.jacobian, self.last = (one.to(self.origin) for one in (state.offset, state.jacobian, state.last))
        self.age = state.age
        self.variable.copy_(self.origin + self.offset.view(-1, len(self.deviations)) @ self.deviations)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """No number where there is no solution: the next step says that the drag diverged."""
    solution: Tensor = torch.linalg.solve_ex(matrix, right).result
    return solution


def blocks(squares: Tensor) -> Tensor:
    """[K, 2, 2] -> [2K, 2K], along its diagonal."""
    places = torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    return (places[:, None, :, None] * squares[:, :, None]).flatten(2).flatten(0, 1)


class Surroundings(NamedTuple):
    """What is around K points."""

    features: Tensor  # [K, P, C]
    slopes: Tensor  # [K, 2, P, C], for one pixel along x and y
    sharpness: Tensor  # [K, 2, 2], how much features differ one pixel further, squared and summed

    @property
    def doubt(self) -> Tensor:
        """[K, 2, 2], covariance of where each point is: larger along an edge; of one that is sharp all around, the identity."""
        mean = self.sharpness.diagonal(dim1=1, dim2=2).mean(dim=1)
        doubt: Tensor = torch.linalg.inv_ex(self.sharpness).inverse * mean[:, None, None]
        return doubt

    def shift(self, change: Tensor) -> Tensor:
        """[K, 2] pixels by which what is around the points has moved where their features changed so, [K, P, C]."""
        return -solve(self.sharpness, torch.einsum("kipc,kpc->ki", self.slopes, change)[..., None])[..., 0]

    def gradients(self, variables: list[Tensor]) -> list[Tensor]:
        """Of the features along their slopes, [k, 2, R, V] for each variable [k, R, V] that is a copy for each of k points."""
        along = torch.einsum("kipc,kpc->i", self.slopes, self.features)  # [2]: copies do not mix
        x, y = (torch.autograd.grad(along[axis], variables, retain_graph=axis == 0) for axis in (0, 1))
        return [torch.stack(both, dim=1) for both in zip(x, y, strict=True)]


def surroundings(maps: list[FeatureMap], points: Tensor, offsets: Tensor, resolution: int) -> Surroundings:
    """
    Args:
        points: [K, 2] xy pixels.
        offsets: [P, 2] pixels, where around a point is looked.
        resolution: of the image.
    """
    places = points[:, None] + offsets
    with torch.no_grad():
        steps = torch.eye(2, dtype=points.dtype, device=points.device) * (SLOPE_PX * resolution / 512)
        ahead, back = (torch.stack([read(maps, places + s * step, resolution) for step in steps], dim=1) for s in (1, -1))
        slopes = (ahead - back) / (2 * steps[0, 0])
        sharpness = torch.einsum("kipc,kjpc->kij", slopes, slopes)
        least = (sharpness.diagonal(dim1=1, dim2=2).mean(dim=1) * FLAT).clamp(min=LEAST)
        sharpness = sharpness + torch.diag_embed(least[:, None].expand(-1, 2))
    return Surroundings(read(maps, places, resolution), slopes, sharpness)
