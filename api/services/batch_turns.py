"""Turns at the check of batches: one tenant's never keep another's waiting for longer than the one that is checked now."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter

from jobs.errors import QuotaExceeded

CHECKED_AT_ONCE = 2  # each takes a thread for long
MAX_IN_FLIGHT = 8  # batches of a tenant that arrive, wait or are checked; each has a file


class BatchTurns:
    """The batches that one process reads and checks."""

    def __init__(self) -> None:
        self.checks = CapacityLimiter(CHECKED_AT_ONCE)
        self.in_flight: Counter[str] = Counter()  # by tenant
        self.turns: dict[str, CapacityLimiter] = {}  # of each tenant one

    @asynccontextmanager
    async def arrival(self, tenant: str) -> AsyncIterator[None]:
        """Count a batch from its first byte to its answer. Raises QuotaExceeded."""
        if self.in_flight[tenant] >= MAX_IN_FLIGHT:
            raise QuotaExceeded(f"may send {MAX_IN_FLIGHT} batches at a time")
        self.in_flight[tenant] += 1
        self.turns.setdefault(tenant, CapacityLimiter(1))
        try:
            yield
        finally:
            self.in_flight[tenant] -= 1
            if not self.in_flight[tenant]:
                del self.in_flight[tenant], self.turns[tenant]

    @asynccontextmanager
    async def check(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn, after the tenant's earlier batches and then beside those of others, and hold it."""
        async with self.turns[tenant], self.checks:
            yield
