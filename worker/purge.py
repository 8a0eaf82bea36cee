"""Deletes what nobody needs: what killed attempts left in the store, and jobs that are no longer retained."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from jobs.database import Sessions
from jobs.errors import StorageUnavailable
from jobs.models import Job
from jobs.retention import expired, forget, needed, still_expired, tidied, untidy
from jobs.storage import Storage, job_prefix

TOGETHER = 100  # jobs looked at in one go
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Purged:
    """What one look deleted."""

    tidied: int = 0  # ended jobs, now without anything but their result
    forgotten: int = 0  # jobs past their retention
    objects: int = 0  # of both


class Purge:
    """Any number may run: each step can be repeated."""

    def __init__(self, sessions: Sessions, storage: Storage, tidy_after_s: float) -> None:
        self.sessions = sessions
        self.storage = storage
        self.tidy_after = timedelta(seconds=tidy_after_s)

    def purge(self) -> Purged:
        """Look once. Raises OperationalError; what was not done is done next time."""
        with self.sessions() as session:
            past, ended = expired(session, TOGETHER), untidy(session, self.tidy_after, TOGETHER)
        gone = [objects for job in past if (objects := self.try_to(self.forget, job)) is not None]
        tidy = [objects for job in ended if (objects := self.try_to(self.tidy, job)) is not None]
        return Purged(tidied=len(tidy), forgotten=len(gone), objects=sum(gone + tidy))

    def try_to(self, action: Callable[[Job], int], job: Job) -> int | None:
        """None when it cannot be done now: one job must not hold up the others."""
        try:
            return action(job)
        except StorageUnavailable as error:
            logger.warning("job %s keeps what it stored: %s", job.id, error)
            return None

    def tidy(self, job: Job) -> int:
        """Delete every object that no artifact of the job is; how many."""
        with self.sessions() as session:
            keep = needed(session, job)
        strays = [key for key in self.storage.keys(job_prefix(job.tenant, job.id)) if key not in keep]
        self.storage.remove(strays)
        with self.sessions.begin() as session:
            tidied(session, job)
        return len(strays)

    def forget(self, job: Job) -> int:
        with self.sessions.begin() as session:
            return forget(session, self.storage, job) if still_expired(session, job) else 0
