"""Waiting for jobs to change: one look at the database for everybody who waits in this process.

No decision hangs on Redis (docs/decisions/0012): a look takes the versions of all watched rows by their primary key.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from uuid import UUID

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from jobs.database import Sessions
from jobs.queue.events import get_versions

LOOK_S = 0.25  # between two looks
AWAY_S = 1.0  # after a look that the database did not answer
GONE = "gone"  # the version of a job that was deleted
T = TypeVar("T")
Waiter = tuple[str, asyncio.Future[str]]  # with the version it has seen
logger = logging.getLogger(__name__)


class ChangeNotifier:
    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.waiting: dict[UUID, list[Waiter]] = {}
        self.looking: asyncio.Task[None] | None = None
        self.reading: dict[Hashable, asyncio.Future[Any]] = {}

    async def once(self, key: Hashable, read: Callable[[], T]) -> T:
        """What `read` finds, in a thread; who asks for the same background_thread gets the same: all that a change has woken.

        It may have begun before a change that its caller knows of; `changed` then says so at once.
        """
        if key not in self.reading:
            self.reading[key] = asyncio.ensure_future(run_in_threadpool(read))
            self.reading[key].add_done_callback(lambda _: self.reading.pop(key, None))
        found: T = await asyncio.shield(self.reading[key])
        return found

    async def changed(self, job_id: UUID, seen: str, limit_s: float) -> str:
        """The version of a job's row once it is not the one seen, or that one after limit_s."""
        entry = (seen, asyncio.get_running_loop().create_future())
        self.waiting.setdefault(job_id, []).append(entry)
        if self.looking is None or self.looking.done():
            self.looking = asyncio.create_task(self.look_on())
        try:
            return await asyncio.wait_for(entry[1], limit_s)
        except TimeoutError:
            return seen
        finally:
            self.leave(job_id, entry)

    def leave(self, job_id: UUID, entry: Waiter) -> None:
        others = [other for other in self.waiting.pop(job_id, []) if other is not entry]
        if others:
            self.waiting[job_id] = others

    async def look_on(self) -> None:
        """Look while somebody waits."""
        while self.waiting:
            pause = LOOK_S
            try:
                self.tell(await run_in_threadpool(self.look, list(self.waiting)))
            except SQLAlchemyError as error:
                logger.warning("who waits for jobs waits longer: %s", str(error).splitlines()[0])
                pause = AWAY_S
            await asyncio.sleep(pause)

    def look(self, ids: list[UUID]) -> dict[UUID, str]:
        with self.sessions() as session:
            found = get_versions(session, ids)
        return {job_id: found.get(job_id, GONE) for job_id in ids}

    def tell(self, now: dict[UUID, str]) -> None:
        for job_id, version in now.items():
            for seen, future in self.waiting.get(job_id, []):
                if seen != version and not future.done():
                    future.set_result(version)
