"""Waiting for jobs to change, with one database poll for everybody who waits in this process.

Nothing depends on Redis here (docs/decisions/0012): a poll reads the versions of all watched rows by their primary key.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError

from jobs.database import Sessions
from jobs.queue.events import get_versions

POLL_S = 0.25  # between two polls
UNAVAILABLE_S = 1.0  # after a poll that the database did not answer
DELETED = "deleted"  # the version of a job that was deleted
T = TypeVar("T")
Waiter = tuple[str, asyncio.Future[str]]  # the version that the waiter has seen, and the next one
logger = logging.getLogger(__name__)


class ChangeNotifier:
    """Tells waiting requests when the rows of their jobs change."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.thread = CapacityLimiter(1)  # which no request takes
        self.waiters: dict[UUID, list[Waiter]] = {}
        self.polling: asyncio.Task[None] | None = None
        self.reads: dict[Hashable, asyncio.Future[Any]] = {}

    async def read_once(self, key: Hashable, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await `read` and return its result; callers with the same key at the same time share one read.

        The read may have begun before a change that the caller knows of; `wait_for_change` then returns at once.
        """
        if key not in self.reads:
            self.reads[key] = asyncio.ensure_future(read())
            self.reads[key].add_done_callback(lambda _: self.reads.pop(key, None))
        result: T = await asyncio.shield(self.reads[key])
        return result

    async def wait_for_change(self, job_id: UUID, seen: str, limit_s: float) -> str:
        """Return the version of a job's row once it is not the one seen, or the one seen after limit_s."""
        waiter = (seen, asyncio.get_running_loop().create_future())
        self.waiters.setdefault(job_id, []).append(waiter)
        if self.polling is None or self.polling.done():
            self.polling = asyncio.create_task(self.poll_while_waited_for())
        try:
            return await asyncio.wait_for(waiter[1], limit_s)
        except TimeoutError:
            return seen
        finally:
            self.remove_waiter(job_id, waiter)

    def remove_waiter(self, job_id: UUID, waiter: Waiter) -> None:
        """Forget one waiter of a job."""
        others = [other for other in self.waiters.pop(job_id, []) if other is not waiter]
        if others:
            self.waiters[job_id] = others

    async def poll_while_waited_for(self) -> None:
        """Poll until nobody waits any more."""
        while self.waiters:
            pause_s = POLL_S
            try:
                self.notify(await to_thread.run_sync(self.read_versions, list(self.waiters), limiter=self.thread))
            except SQLAlchemyError as error:
                logger.warning("cannot poll for changed jobs, waiting requests wait longer: %s", str(error).splitlines()[0])
                pause_s = UNAVAILABLE_S
            await asyncio.sleep(pause_s)

    def read_versions(self, ids: list[UUID]) -> dict[UUID, str]:
        """Return the version of each job's row."""
        with self.sessions() as session:
            rows = get_versions(session, ids)
        return {job_id: rows.get(job_id, DELETED) for job_id in ids}

    def notify(self, current: dict[UUID, str]) -> None:
        """Wake the waiters that have not seen the current version of their job."""
        for job_id, version in current.items():
            for seen, future in self.waiters.get(job_id, []):
                if seen != version and not future.done():
                    future.set_result(version)
