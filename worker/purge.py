"""Deletes what nobody needs: what killed attempts left in the store, and jobs that are no longer retained."""

import logging
from dataclasses import dataclass
from datetime import timedelta

from jobs.database import Sessions
from jobs.models import Job
from jobs.retention import expired, forget, needed, tidied, untidy
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
        """Look once. Raises StorageUnavailable, OperationalError; what was not done is done next time."""
        with self.sessions() as session:
            past, ended = expired(session, TOGETHER), untidy(session, self.tidy_after, TOGETHER)
        objects = sum(self.forget(job) for job in past)
        objects += sum(self.tidy(job) for job in ended)
        return Purged(tidied=len(ended), forgotten=len(past), objects=objects)

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
            return forget(session, self.storage, job)
