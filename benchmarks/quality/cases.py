"""The edits that are measured: drawn from a seed, the same for every method."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.faces.factors import factors_of
from benchmarks.faces.parts import LANDMARKS, PARTS
from benchmarks.faces.renderer import Picture, render
from benchmarks.quality.rulers import LandmarkRuler
from engine.networks.stylegan2 import Generator

SHAPE_ROWS = 6  # of the demo checkpoint: rows 0-5 hold shape and pose, the others colors and light
PERTURBATION = 0.4  # standard deviation added to z in the paired reconstruction
PAIR_POINTS = 32
LARGEST_SEED = 2**31


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """One edit to measure."""

    index: int
    start: Tensor  # w+ [1, L, D]
    handles: np.ndarray  # [K, 2] xy pixels
    targets: np.ndarray  # [K, 2] xy pixels
    labels: list[int]  # which landmarks the handles are; empty for points that are none
    goal: Tensor | None = None  # w+ of the picture that has its points at the targets
    picture: Tensor | None = None  # what is to be found in the generator first, [1, 3, R, R]
    circle: tuple[float, float, float] | None = None  # x, y, radius of what may change, pixels

    def movable(self, resolution: int) -> np.ndarray | None:
        """Return the movable mask [R, R] bool, True where the picture may change; None: everywhere."""
        if self.circle is None:
            return None
        x, y, radius = self.circle
        line = np.arange(resolution)
        inside: np.ndarray = (line[None] - x) ** 2 + (line[:, None] - y) ** 2 <= radius**2
        return inside


def random_states(count: int, seed: int) -> Iterator[tuple[int, np.random.RandomState]]:
    """Yield each case's number and random generator: case k then does not depend on how many cases there are."""
    for k in range(count):
        yield k, np.random.RandomState([seed, k])


def landmark_cases(ruler: LandmarkRuler, psi: float, count: int, points: int, seed: int) -> Iterator[Case]:
    """Yield cases of two random samples: `points` landmarks of the first go where the second has them (paper, section 4.2)."""
    generator = ruler.generator
    last = generator.config.resolution - 1
    for k, random in random_states(count, seed):
        start, goal = (generator.map(seed=int(random.randint(LARGEST_SEED)), truncation_psi=psi) for _ in range(2))
        labels = random.permutation(len(LANDMARKS))[:points].tolist()
        handles, targets = (ruler.landmarks(w)[labels].clip(0, last) for w in (start, goal))
        yield Case(index=k, start=start, handles=handles, targets=targets, labels=labels, goal=goal)


def background_cases(ruler: LandmarkRuler, psi: float, count: int, seed: int) -> Iterator[Case]:
    """Yield cases of one landmark that goes towards where another sample has it, within a circle that may change.

    Every third circle has a radius of 8 to 15 % of the width, the others of 15 to 35 %; the shift is at most 1.2 radii.
    """
    width = ruler.generator.config.resolution
    for case in landmark_cases(ruler, psi, count, 1, seed):
        random = np.random.RandomState([seed, case.index, 1])
        share = random.uniform(0.08, 0.15) if case.index % 3 == 0 else random.uniform(0.15, 0.35)
        shift = case.targets - case.handles
        shift = shift * min(1.0, 1.2 * share * width / np.linalg.norm(shift))
        targets = (case.handles + shift).clip(0, width - 1)
        x, y = (case.handles[0] + targets[0]) / 2
        circle = (float(x), float(y), share * width)
        yield Case(index=case.index, start=case.start, handles=case.handles, targets=targets, labels=case.labels, circle=circle)


def pair_cases(generator: Generator, psi: float, count: int, seed: int) -> Iterator[Case]:
    """Yield cases of z and the same z with its shape perturbed (paper, section 4.2).

    32 points come from the drawings' dense correspondence.
    """
    resolution = generator.config.resolution
    for k, random in random_states(count, seed):
        z = random.randn(1, generator.config.z_dim)
        both = torch.from_numpy(np.concatenate([z, z + PERTURBATION * random.randn(*z.shape)])).to(generator.device).float()
        picture = render(factors_of(both, both[:1].expand_as(both), psi), resolution, dense=True)
        handles, targets = find_correspondences(picture, PAIR_POINTS, random)
        w = generator.mapping.truncate(generator.mapping(both), psi)
        start, goal = generator.broadcast(w[:1]), generator.broadcast(w[1:])
        goal = torch.cat([goal[:, :SHAPE_ROWS], start[:, SHAPE_ROWS:]], dim=1)
        yield Case(index=k, start=start, handles=handles, targets=targets, labels=[], goal=goal)


def find_correspondences(picture: Picture, count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Choose points that both of two pictures show.

    Returns:
        [N, 2] xy pixels of the first picture, and [N, 2] xy where the second shows the same points, to a fraction of a pixel.
    """
    assert picture.part is not None
    assert picture.coordinates is not None
    part, coordinates = picture.part.cpu().numpy(), picture.coordinates.cpu().numpy()
    rows, columns = np.nonzero(part[0] != PARTS.index("background"))
    points: list[tuple[int, int]] = []
    matches: list[np.ndarray] = []
    for choice in random.permutation(len(rows)):
        row, column = rows[choice], columns[choice]
        found = find_point(part[1], coordinates[1], part[0, row, column], coordinates[0, :, row, column])
        if found is not None:
            points.append((column, row))
            matches.append(found)
        if len(points) == count:
            break
    return np.array(points, dtype=np.float64), np.array(matches)


def find_point(part: np.ndarray, coordinates: np.ndarray, wanted: int, uv: np.ndarray) -> np.ndarray | None:
    """Return the xy pixels where a picture shows the point uv of a part; None if it is hidden there."""
    distance = np.where(part == wanted, np.square(coordinates - uv[:, None, None]).sum(axis=0), np.inf)
    row, column = np.unravel_index(distance.argmin(), distance.shape)
    if not (1 <= row < len(part) - 1 and 1 <= column < len(part) - 1):
        return None
    if (part[row - 1 : row + 2, column - 1 : column + 2] != wanted).any():  # at the part's edge the match is one-sided
        return None
    across = (coordinates[:, row, column + 1] - coordinates[:, row, column - 1]) / 2
    down = (coordinates[:, row + 1, column] - coordinates[:, row - 1, column]) / 2
    jacobian = np.stack([across, down], axis=1).astype(np.float64)
    if abs(np.linalg.det(jacobian)) < 1e-9:
        return None
    shift = np.linalg.solve(jacobian, uv - coordinates[:, row, column])
    if np.abs(shift).max() > 1:
        return None
    return np.array([column, row]) + shift


def displacement_cases(generator: Generator, psi: float, count: int, points: int, seed: int) -> Iterator[Case]:
    """Yield cases for checkpoints without geometry.

    Random points of the middle half go 5 to 15 % of the width, all in one direction.
    """
    size = generator.config.resolution
    for k, random in random_states(count, seed):
        start = generator.map(seed=int(random.randint(LARGEST_SEED)), truncation_psi=psi)
        angle, length = random.uniform(0, 2 * np.pi), random.uniform(0.05, 0.15) * size
        handles = random.uniform(0.25 * size, 0.75 * size, (points, 2))
        targets = (handles + length * np.array([np.cos(angle), np.sin(angle)])).clip(0, size - 1)
        yield Case(index=k, start=start, handles=handles, targets=targets, labels=[])
