"""Waiting for jobs to change: one look at the database for everybody who waits in this process.

No decision hangs on Redis (docs/decisions/0012): a look takes the versions of all watched rows by their primary key.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeVar
from uuid import UUID

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from jobs.database import Sessions
from jobs.events import versions

LOOK_S = 0.25  # between two looks
AWAY_S = 1.0  # after a look that the database did not answer
GONE = "gone"  # the version of a job that was deleted
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Watcher:
    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.waiting: dict[UUID, list[tuple[str, asyncio.Future[str]]]] = defaultdict(list)  # with the version each has seen
        self.looking: asyncio.Task[None] | None = None
        self.reading: dict[Hashable, asyncio.Future[Any]] = {}

    async def once(self, key: Hashable, read: Callable[[], T]) -> T:
        """What `read` finds, in a thread; who asks for the same meanwhile gets the same: all that a change has woken.

        It may have begun before a change that its caller knows of; `changed` then says so at once.
        """
        if key not in self.reading:
            self.reading[key] = asyncio.ensure_future(run_in_threadpool(read))
            self.reading[key].add_done_callback(lambda _: self.reading.pop(key, None))
        found: T = await asyncio.shield(self.reading[key])
        return found

    async def changed(self, job_id: UUID, seen: str, limit_s: float) -> str:
        """The version of a job's row once it is not the one seen, or that one after limit_s."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        entry = (seen, future)
        self.waiting[job_id].append(entry)
        if self.looking is None or self.looking.done():
            self.looking = asyncio.create_task(self.look_on())
        with suppress(TimeoutError):
            return await asyncio.wait_for(future, limit_s)
        self.leave(job_id, entry)
        return seen

    def leave(self, job_id: UUID, entry: tuple[str, asyncio.Future[str]]) -> None:
        with suppress(KeyError, ValueError):
            self.waiting[job_id].remove(entry)
            if not self.waiting[job_id]:
                del self.waiting[job_id]

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
            found = versions(session, ids)
        return {job_id: found.get(job_id, GONE) for job_id in ids}

    def tell(self, now: dict[UUID, str]) -> None:
        for job_id, version in now.items():
            for seen, future in [entry for entry in self.waiting.get(job_id, []) if entry[0] != version]:
                if not future.done():
                    future.set_result(version)
                self.leave(job_id, (seen, future))
