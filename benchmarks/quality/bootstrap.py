"""Bootstrap intervals for figures of few cases: percentiles of resampled means or medians."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
COVERAGE = 95  # percent


@dataclass(frozen=True)
class Interval:
    """A statistic of all cases, and the range that holds 95 % of its resampled values."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval(values: list[float], statistic: Callable[..., np.ndarray] = np.mean) -> Interval:
    """Return the bootstrap interval of a statistic such as np.mean or np.median; the same values always give the same."""
    sample = np.asarray(values, dtype=np.float64)
    picks = np.random.RandomState(0).randint(len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.percentile(statistic(sample[picks], axis=1), [(100 - COVERAGE) / 2, (100 + COVERAGE) / 2])
    return Interval(float(statistic(sample)), float(low), float(high))


def paired(before: list[float], after: list[float]) -> Interval:
    """Return the interval of the mean change from before to after, case by case."""
    return interval([new - old for old, new in zip(before, after, strict=True)])
