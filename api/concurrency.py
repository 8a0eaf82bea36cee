"""What one client may have open or running at once, so that it never takes the turn of another."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from anyio import CapacityLimiter, fail_after, to_thread

from jobs.errors import Busy, RateLimited

THREADS = 16  # in which routes run; each may hold two connections to the database
SHARE = 6  # of the threads, for one tenant: more only contend for the interpreter
WAIT_S = 10.0  # how long a request waits for a thread of its tenant's share
T = TypeVar("T")


class RouteThreads:
    """The threads in which routes run. A tenant has a share of them and waits for its own requests alone."""

    def __init__(self, threads: int = THREADS, share: int = SHARE) -> None:
        self.all = CapacityLimiter(threads)
        self.share = share
        self.shares: dict[str, CapacityLimiter] = {}  # of the tenants that have requests now

    async def run(self, tenant: str, function: Callable[..., T], *arguments: object) -> T:
        """Run a function in a thread of the tenant's share. Raises Busy, and what the function raises."""
        share = self.shares.setdefault(tenant, CapacityLimiter(self.share))
        request = object()
        try:
            with fail_after(WAIT_S):
                await share.acquire_on_behalf_of(request)
        except TimeoutError:
            raise Busy(f"{self.share} requests of this tenant run already: no turn within {WAIT_S:g} s") from None
        try:
            return await to_thread.run_sync(function, *arguments, limiter=self.all)
        finally:
            share.release_on_behalf_of(request)
            if share.borrowed_tokens == 0 and share.statistics().tasks_waiting == 0:
                self.shares.pop(tenant, None)


class OpenCount:
    """Counts what clients have open in this process, such as requests or streams."""

    def __init__(self, what: str) -> None:
        """Begin at zero.

        Args:
            what: is counted, for the message: "requests".
        """
        self.what = what
        self.open: Counter[str] = Counter()

    @contextmanager
    def count(self, client: str, limit: int) -> Iterator[None]:
        """Count one more while the context is open. Raises RateLimited when the client has as many open as it may."""
        if self.open[client] >= limit:
            raise RateLimited(f"this client may have {limit} {self.what} open at a time")
        self.open[client] += 1
        try:
            yield
        finally:
            self.open[client] -= 1
            if self.open[client] == 0:
                del self.open[client]
