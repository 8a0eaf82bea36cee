"""How w is distributed over 10,000 samples, and where a drag may take it."""

import re
import threading
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from engine.errors import InvalidEdit
from engine.networks.stylegan2 import Generator, MappingNetwork

SAMPLES = 10_000
SEED = 123


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    spread: float  # standard deviation of a number of w
    directions: Tensor  # [D, D], orthonormal rows, the one along which w varies most first (GANSpace, Härkönen et al. 2020)
    deviations: Tensor  # [D], standard deviation along each


known: WeakKeyDictionary[MappingNetwork, LatentStatistics] = WeakKeyDictionary()
measuring = threading.Lock()


def latent_statistics(generator: Generator) -> LatentStatistics:
    """Of a generator's w; of a conditional one its first class. Computed once for each mapping network in memory."""
    with measuring:
        if generator.mapping not in known:
            known[generator.mapping] = measure(generator)
        return known[generator.mapping]


@torch.no_grad()
def measure(generator: Generator) -> LatentStatistics:
    config = generator.config
    z = torch.from_numpy(np.random.RandomState(SEED).randn(SAMPLES, config.z_dim)).to(generator.mapping.w_avg)
    label = generator.label(0 if config.c_dim else None)
    w = generator.mapping(z, None if label is None else label.expand(SAMPLES, -1))
    offsets = w - w.mean(dim=0)
    spread = offsets.square().sum(dim=1).mean().div(config.w_dim).sqrt()
    exact = offsets.double().cpu()
    sums, vectors = torch.linalg.eigh(exact.t() @ exact)  # the largest variance last
    deviations = sums.flip(0).clamp(min=0).div(SAMPLES).sqrt()
    return LatentStatistics(float(spread), vectors.flip(1).t().contiguous().to(w), deviations.to(w))


class Region(Protocol):
    """Where w+ may go: what the optimizer varies, and the trainable rows [1, R, D] that it stands for."""

    origin: Tensor  # of the variable

    def rows(self, variable: Tensor) -> Tensor: ...


class EachRow:
    def __init__(self, start: Tensor) -> None:
        self.origin = start  # [1, R, D]

    def rows(self, variable: Tensor) -> Tensor:
        return variable


class AllRowsAlike:
    """Rows that differ at the start, as those of a photo or of an earlier edit do, keep their differences."""

    def __init__(self, start: Tensor) -> None:
        self.origin = start[:, :1]
        self.differences = start - start[:, :1]  # [1, R, D]

    def rows(self, variable: Tensor) -> Tensor:
        return variable + self.differences


class PrincipalDirections:
    """All rows alike, in the few directions along which w varies most: results stay in the model's distribution."""

    def __init__(self, start: Tensor, directions: Tensor) -> None:
        self.start = start
        self.directions = directions  # [K, D], orthonormal
        self.origin = start.new_zeros(1, 1, len(directions))

    def rows(self, variable: Tensor) -> Tensor:
        return self.start + variable @ self.directions


def choose_region(generator: Generator, start: Tensor, latent_space: str) -> Region:
    """Of the trainable rows [1, R, D]: w+ moves each by itself, w all alike, pca:K alike and in K directions.

    Raises:
        InvalidEdit: latent_space is none of these.
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


def deviations(generator: Generator, region: Region) -> Tensor:
    """[V, V]: what changes a region's variable [1, R, V] by one standard deviation along each principal direction."""
    known = latent_statistics(generator)
    if isinstance(region, PrincipalDirections):
        return torch.diag(known.deviations[: len(region.directions)]).to(region.origin)
    return (known.deviations[:, None] * known.directions).to(region.origin)
