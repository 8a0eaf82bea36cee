"""How w is distributed over samples of z."""

import threading
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from engine.networks.config import W_SAMPLES, W_SEED
from engine.networks.stylegan2 import Generator, MappingNetwork


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Spread and principal directions of w (GANSpace, Härkönen et al. 2020)."""

    spread: float  # standard deviation of one number of w
    directions: Tensor  # [D, D], orthonormal rows; w varies most along the first
    deviations: Tensor  # [D], standard deviation along each direction


known: WeakKeyDictionary[MappingNetwork, LatentStatistics] = WeakKeyDictionary()
measuring = threading.Lock()


def latent_statistics(generator: Generator) -> LatentStatistics:
    """Return the statistics of a generator's w, of class 0 if it is conditional; computed once for each mapping network."""
    with measuring:
        if generator.mapping not in known:
            known[generator.mapping] = measure(generator)
        return known[generator.mapping]


@torch.no_grad()
def measure(generator: Generator) -> LatentStatistics:
    config = generator.config
    z = torch.from_numpy(np.random.RandomState(W_SEED).randn(W_SAMPLES, config.z_dim)).to(generator.mapping.w_avg)
    label = generator.label(0 if config.c_dim else None)
    w = generator.mapping(z, None if label is None else label.expand(W_SAMPLES, -1))  # [N, D]
    offsets = w - w.mean(dim=0)
    spread = offsets.square().sum(dim=1).mean().div(config.w_dim).sqrt()
    exact = offsets.double().cpu()
    sums, vectors = torch.linalg.eigh(exact.t() @ exact)  # the largest variance comes last
    deviations = sums.flip(0).clamp(min=0).div(W_SAMPLES).sqrt()
    return LatentStatistics(float(spread), vectors.flip(1).t().contiguous().to(w), deviations.to(w))
