"""An attempt's right to its job, renewed by progress."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from jobs.database import Sessions
from jobs.errors import LeaseLost
from jobs.repository import JobRepository, Wishes


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
        self.written = -float("inf")  # monotonic clock
        self.wishes = Wishes(cancel=False)

    def progress(self, progress: dict[str, Any]) -> Wishes:
        """Say how far the attempt is, unless that was said a moment ago; returns what clients want.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        if time.monotonic() - self.written >= self.pace.progress_interval_s:
            self.renew(progress)
        return self.wishes

    def renew(self, progress: dict[str, Any] | None = None) -> None:
        """Raises LeaseLost."""
        with self.sessions.begin() as session:
            lease = timedelta(seconds=self.pace.lease_s)
            self.wishes = JobRepository(session).renew(self.job_id, self.attempt, lease, progress)
        self.written = time.monotonic()

    @contextmanager
    def silent(self, phase: str, limit_s: float) -> Iterator[None]:
        """A phase without steps: a thread renews, but only for limit_s, so that what hangs loses its lease.

        Raises:
            LeaseLost: at the end, if it was lost meanwhile.
        """
        self.renew({"phase": phase})
        done = threading.Event()
        lost: list[LeaseLost] = []
        thread = threading.Thread(target=self.beat, args=(done, lost, time.monotonic() + limit_s), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if lost:
            raise lost[0]

    def beat(self, done: threading.Event, lost: list[LeaseLost], until: float) -> None:
        while not done.wait(self.pace.beat_s) and time.monotonic() < until:
            try:
                self.renew()
            except LeaseLost as error:
                lost.append(error)
                return
