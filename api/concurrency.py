"""What one client may have open or running at once, so that it never takes the turn of another."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import TypeVar

from anyio import CancelScope, CapacityLimiter, fail_after, to_thread

from jobs.cancellation import cancelable
from jobs.errors import Busy, RateLimited

THREADS = 16  # in which routes run; most of their time they wait for the database
SHARE = 6  # of the threads, for one tenant
WAIT_S = 10.0  # how long a request waits for a thread of its tenant's share
HEAVY_CPU_S = 0.02  # of the processor; most requests take 3 ms
HALF_LIFE_S = 10.0  # of the memory of what a tenant's requests took
UNKNOWN_TURNS = 2  # of a tenant whose requests nobody has measured yet
MAX_SHARES = 1_000  # that are remembered
NEWEST_WEIGHT = 0.3  # of a request in the average of its tenant's
T = TypeVar("T")


async def run_to_end(function: Callable[[], T], limiter: CapacityLimiter) -> T:
    """Run a function in a thread.

    When this task is canceled because its client has gone, the function is told (`jobs.cancellation`), and its end is waited for:
    what it holds is held until then.
    """
    gone = Event()

    def run() -> T:
        with cancelable(gone):
            return function()

    work = asyncio.ensure_future(to_thread.run_sync(run, limiter=limiter))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        gone.set()
        with CancelScope(shield=True):  # scopes of anyio cancel again and again
            await asyncio.wait({work})
        work.exception()  # nobody waits for it any more
        raise


class Share:
    """The turns of one tenant. One whose requests take much of the processor has one turn at a time.

    All threads share an interpreter, which a thread may keep for as long as a large document takes.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.turns = CapacityLimiter(min(threads, UNKNOWN_TURNS))
        self.average_cpu_s = 0.0  # of the latest requests
        self.used_at = time.monotonic()

    def measure(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a function, and remember what it took."""
        before = time.thread_time()
        try:
            return function(*arguments)
        finally:
            self.average_cpu_s += (time.thread_time() - before - self.average_cpu_s) * NEWEST_WEIGHT

    def cool(self) -> None:
        """Let what requests took count less the longer ago it was."""
        now = time.monotonic()
        self.average_cpu_s *= 0.5 ** ((now - self.used_at) / HALF_LIFE_S)
        self.used_at = now

    def adapt(self) -> None:
        """Give as many turns as the latest requests allow."""
        self.turns.total_tokens = 1 if self.average_cpu_s > HEAVY_CPU_S else self.threads

    @property
    def unused(self) -> bool:
        """Whether no request holds a turn or waits for one."""
        return self.turns.borrowed_tokens == 0 and self.turns.statistics().tasks_waiting == 0


class RouteThreads:
    """The threads in which routes run. A tenant has a share of them and waits for its own requests alone."""

    def __init__(self, threads: int = THREADS, share: int = SHARE) -> None:
        self.all = CapacityLimiter(threads)
        self.share = share
        self.shares: dict[str, Share] = {}

    async def run(self, tenant: str, function: Callable[..., T], *arguments: object) -> T:
        """Run a function in a thread of the tenant's share. Raises Busy, and what the function raises."""
        share, request = self.find_share(tenant), object()
        try:
            with fail_after(WAIT_S):
                await share.turns.acquire_on_behalf_of(request)
                try:
                    await self.all.acquire_on_behalf_of(request)
                except BaseException:
                    share.turns.release_on_behalf_of(request)
                    raise
        except TimeoutError:
            raise Busy(f"other requests of this tenant or of others take longer: no turn within {WAIT_S:g} s") from None
        try:
            return await run_to_end(partial(share.measure, function, *arguments), CapacityLimiter(1))
        finally:
            self.all.release_on_behalf_of(request)
            share.turns.release_on_behalf_of(request)
            share.adapt()

    def find_share(self, tenant: str) -> Share:
        """Return the share of a tenant; forget others that nobody uses when there are too many."""
        if tenant not in self.shares and len(self.shares) >= MAX_SHARES:
            self.shares = {name: share for name, share in self.shares.items() if not share.unused}
        share = self.shares.setdefault(tenant, Share(self.share))
        share.cool()
        return share


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
