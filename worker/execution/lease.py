"""An attempt's right to its job, renewed by progress."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from jobs.database import Sessions
from jobs.errors import LeaseLost
from jobs.queue import attempts
from jobs.queue.attempts import JobRequests
from worker.background_thread import background_thread
from worker.retry import SERVER_UNAVAILABLE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often to write, in seconds."""

    lease_s: float
    beat_s: float
    progress_interval_s: float


class Lease:
    def __init__(self, sessions: Sessions, job_id: UUID, attempt: int, pace: Pace) -> None:
        self.sessions = sessions
        self.job_id = job_id
        self.attempt = attempt
        self.pace = pace
        self.written = time.monotonic() - pace.progress_interval_s  # when the lease was last renewed
        self.stepped = time.monotonic()  # when there was progress
        self.wishes = JobRequests()

    def progress(self, progress: dict[str, Any]) -> JobRequests:
        """Say how far the attempt is, unless that was said a moment ago; returns what clients want.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        self.stepped = time.monotonic()
        if self.stepped - self.written >= self.pace.progress_interval_s:
            self.try_to_renew(progress)
        return self.wishes

    def try_to_renew(self, progress: dict[str, Any] | None = None) -> None:
        """Renew; while the database is away, go on as long as the lease would last. Raises LeaseLost."""
        try:
            self.renew(progress)
        except SERVER_UNAVAILABLE as error:
            if time.monotonic() - self.written >= self.pace.lease_s:
                raise
            logger.warning("job %s: lease not renewed: %s", self.job_id, error)

    def renew(self, progress: dict[str, Any] | None = None) -> None:
        """Raises LeaseLost."""
        with self.sessions.begin() as session:
            lease = timedelta(seconds=self.pace.lease_s)
            self.wishes = attempts.renew(session, self.job_id, self.attempt, lease, progress)
        self.written = time.monotonic()

    @contextmanager
    def silent(self, phase: str, limit_s: float) -> Iterator[None]:
        """A phase without steps: a thread renews, but only for limit_s, so that what hangs loses its lease.

        Raises:
            LeaseLost: at the end, if it was lost background_thread.
        """
        self.try_to_renew({"phase": phase})
        failed: list[Exception] = []
        until = time.monotonic() + limit_s
        with background_thread(lambda over: self.beat(over, failed, until), "beats"):
            yield
        if failed:
            raise failed[0]

    def kept(self, limit_s: float) -> AbstractContextManager[None]:
        """Between steps that wait for others: a thread renews, as long as the last step is younger than limit_s."""
        return background_thread(lambda over: self.keep(over, limit_s), "lease")

    def keep(self, over: threading.Event, limit_s: float) -> None:
        """What goes wrong here the next step meets itself."""
        while not over.wait(self.pace.beat_s):
            now = time.monotonic()
            if now - self.written >= self.pace.beat_s and now - self.stepped < limit_s:
                with suppress(LeaseLost, *SERVER_UNAVAILABLE):
                    self.try_to_renew()

    def beat(self, over: threading.Event, failed: list[Exception], until: float) -> None:
        while not over.wait(self.pace.beat_s) and time.monotonic() < until:
            try:
                self.try_to_renew()
            except (LeaseLost, *SERVER_UNAVAILABLE) as error:
                failed.append(error)
                return
