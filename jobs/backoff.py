"""How long the service waits before it tries something again: exponential backoff with jitter, in Python and in SQL."""

import random
from dataclasses import dataclass

from sqlalchemy import ColumnElement, SQLColumnExpression, func

JITTER = 0.2  # share of a delay, up or down: what failed together must not come back together
MOST_DOUBLINGS = 30  # more would only overflow


def with_jitter(delay_s: float) -> float:
    """Return the delay, up to a fifth shorter or longer."""
    return delay_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # nobody gains by guessing it


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """A delay that each failure doubles, up to a limit; then with jitter."""

    first_s: float  # after the first failure
    limit_s: float  # before the jitter

    def delay_s(self, earlier_failures: int) -> float:
        """Return the seconds to wait after a failure that follows so many others."""
        return with_jitter(min(self.limit_s, self.first_s * 2 ** min(earlier_failures, MOST_DOUBLINGS)))

    def delay_sql(self, earlier_failures: SQLColumnExpression[int]) -> ColumnElement[float]:
        """Return the same as an expression of PostgreSQL, for a count that a row holds."""
        doubled = self.first_s * func.power(2, func.least(earlier_failures, MOST_DOUBLINGS))
        return func.least(self.limit_s, doubled) * (1 - JITTER + 2 * JITTER * func.random())
