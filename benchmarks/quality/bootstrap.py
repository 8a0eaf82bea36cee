"""Intervals for figures of few cases: percentiles of resampled means or medians."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
COVERAGE = 95  # percent


@dataclass(frozen=True)
class Interval:
    """A statistic of all cases, and where 95 % of its resampled values lie."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval(values: list[float], statistic: Callable[..., np.ndarray] = np.mean) -> Interval:
    """Bootstrap interval of a statistic such as np.mean or np.median; always the same for the same values."""
    sample = np.asarray(values, dtype=np.float64)
    picks = np.random.RandomState(0).randint(len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.percentile(statistic(sample[picks], axis=1), [(100 - COVERAGE) / 2, (100 + COVERAGE) / 2])
    return Interval(float(statistic(sample)), float(low), float(high))


def paired(before: list[float], after: list[float]) -> Interval:
    """Of the mean change case by case; below 0 throughout: after is lower."""
    return interval([new - old for old, new in zip(before, after, strict=True)])
