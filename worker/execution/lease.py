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


class Canceled(Exception):
    """A client has canceled the job."""


@dataclass(frozen=True, kw_only=True)
class LeaseTimes:
    """The durations of a lease, in seconds."""

    lease_s: float
    beat_s: float
    progress_interval_s: float


class Lease:
    """The lease of one attempt; each renewal brings back what clients have asked of the job."""

    def __init__(self, sessions: Sessions, job_id: UUID, attempt: int, times: LeaseTimes) -> None:
        self.sessions = sessions
        self.job_id = job_id
        self.attempt = attempt
        self.times = times
        self.renewed_at = time.monotonic() - times.progress_interval_s
        self.progressed_at = time.monotonic()
        self.requests = JobRequests()

    def report_progress(self, progress: dict[str, Any]) -> JobRequests:
        """Write how far the attempt is, unless that was written a moment ago; return what clients have asked.

        Raises:
            LeaseLost: the job is no longer this attempt's.
            Canceled: a client has asked for that.
        """
        self.progressed_at = time.monotonic()
        if self.progressed_at - self.renewed_at >= self.times.progress_interval_s:
            self.try_to_renew(progress)
        self.raise_if_canceled()
        return self.requests

    def raise_if_canceled(self) -> None:
        """Raise Canceled if a client asked for it before the last renewal."""
        if self.requests.cancel:
            raise Canceled

    def try_to_renew(self, progress: dict[str, Any] | None = None) -> None:
        """Renew; while the database is away, go on as long as the lease would last. Raises LeaseLost."""
        try:
            self.renew(progress)
        except SERVER_UNAVAILABLE as error:
            if time.monotonic() - self.renewed_at >= self.times.lease_s:
                raise
            logger.warning("job %s: lease not renewed: %s", self.job_id, error)

    def renew(self, progress: dict[str, Any] | None = None) -> None:
        """Renew in one transaction. Raises LeaseLost."""
        with self.sessions.begin() as session:
            lease = timedelta(seconds=self.times.lease_s)
            self.requests = attempts.renew(session, self.job_id, self.attempt, lease, progress)
        self.renewed_at = time.monotonic()

    @contextmanager
    def renewed_in_background(self, phase: str, limit_s: float) -> Iterator[None]:
        """Let a thread renew during a phase without steps.

        Args:
            phase: written as the progress.
            limit_s: the thread renews no longer than this, so that what hangs loses its lease.

        Raises:
            LeaseLost: at the end of the phase, if the lease was lost during it.
            Canceled: at the end of the phase, if a client has asked for that.
        """
        self.try_to_renew({"phase": phase})
        failures: list[Exception] = []
        until = time.monotonic() + limit_s
        with background_thread(lambda ended: self.renew_until(until, ended, failures), "beats"):
            yield
        if failures:
            raise failures[0]
        self.raise_if_canceled()

    def renew_until(self, until: float, ended: threading.Event, failures: list[Exception]) -> None:
        """Renew every beat until the event or the moment comes; note the first failure and stop there."""
        while not ended.wait(self.times.beat_s) and time.monotonic() < until:
            try:
                self.try_to_renew()
            except (LeaseLost, *SERVER_UNAVAILABLE) as error:
                failures.append(error)
                return

    def renewed_between_steps(self, limit_s: float) -> AbstractContextManager[None]:
        """Let a thread renew while steps wait for other jobs' steps, as long as the last step is younger than limit_s."""
        return background_thread(lambda ended: self.renew_while_stepping(ended, limit_s), "lease")

    def renew_while_stepping(self, ended: threading.Event, limit_s: float) -> None:
        """Renew what no step has renewed within a beat; a failure is left to the next step, which meets it itself."""
        while not ended.wait(self.times.beat_s):
            now = time.monotonic()
            if now - self.renewed_at >= self.times.beat_s and now - self.progressed_at < limit_s:
                with suppress(LeaseLost, *SERVER_UNAVAILABLE):
                    self.try_to_renew()
