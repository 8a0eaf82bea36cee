"""Where a drag may take w+: the variable that a solver changes, and the rows of w+ that it stands for."""

import re
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import InvalidEdit
from engine.networks.latent_statistics import LatentStatistics, latent_statistics
from engine.networks.stylegan2 import Generator


class LatentParameterization(Protocol):
    """How a variable [k, R', V] stands for the trainable rows [k, R, D] of w+."""

    origin: Tensor  # [1, R', V], the variable at the start

    def rows(self, variable: Tensor) -> Tensor:
        """Return the trainable rows [k, R, D] of a variable [k, R', V]."""
        ...

    def standard_deviations(self, statistics: LatentStatistics) -> Tensor:
        """Return [V, V]: each row is the change of the variable by one standard deviation along a principal direction of w."""
        ...


class EachRow:
    """w+: every trainable row by itself."""

    def __init__(self, start: Tensor) -> None:
        self.origin = start  # [1, R, D]

    def rows(self, variable: Tensor) -> Tensor:
        return variable

    def standard_deviations(self, statistics: LatentStatistics) -> Tensor:
        return (statistics.deviations[:, None] * statistics.directions).to(self.origin)


class AllRowsAlike:
    """w: all trainable rows change alike. Rows that differ at the start, as those of a photo do, keep their differences."""

    def __init__(self, start: Tensor) -> None:
        self.origin = start[:, :1]  # [1, 1, D]
        self.differences = start - start[:, :1]  # [1, R, D]

    def rows(self, variable: Tensor) -> Tensor:
        return variable + self.differences  # [k, R, D]

    def standard_deviations(self, statistics: LatentStatistics) -> Tensor:
        return (statistics.deviations[:, None] * statistics.directions).to(self.origin)


class PrincipalDirections:
    """pca:K: all rows change alike, along the K directions in which w varies most, so that results stay likely."""

    def __init__(self, start: Tensor, directions: Tensor) -> None:
        self.start = start  # [1, R, D]
        self.directions = directions  # [K, D], orthonormal
        self.origin = start.new_zeros(1, 1, len(directions))

    def rows(self, variable: Tensor) -> Tensor:
        return self.start + variable @ self.directions  # [k, R, D]

    def standard_deviations(self, statistics: LatentStatistics) -> Tensor:
        return torch.diag(statistics.deviations[: len(self.directions)]).to(self.origin)


def parameterize(generator: Generator, start: Tensor, latent_space: str) -> LatentParameterization:
    """Return the parameterization of the trainable rows [1, R, D] that `latent_space` names.

    Raises:
        InvalidEdit: latent_space is none of w+, w and pca:K.
    """
    if latent_space == "w+":
        return EachRow(start)
    if latent_space == "w":
        return AllRowsAlike(start)
    width = generator.config.w_dim
    match = re.fullmatch(r"pca:(\d{1,4})", latent_space)
    if match is None or not 1 <= int(match[1]) <= width:
        raise InvalidEdit(f"latent_space must be w, w+ or pca:K with K from 1 to {width}, got {latent_space[:20]}")
    return PrincipalDirections(start, latent_statistics(generator).directions[: int(match[1])])
