"""Deletes what nobody needs: what killed attempts left in the store, and jobs that are no longer retained."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from jobs.database import Sessions
from jobs.errors import StorageUnavailable, UploadInUse, UploadNotFound
from jobs.queue import batches
from jobs.storage import presigned
from jobs.storage.objects import Storage, job_prefix
from jobs.storage.retention import expired, forget, needed, still_expired, tidied, untidy
from jobs.storage.uploads import UploadRepository
from jobs.tables import Job, PresignedUpload, Upload
from jobs.tenants import quotas

TOGETHER = 100  # jobs looked at in one go
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Purged:
    """What one look deleted."""

    tidied: int = 0  # ended jobs, now without anything but their result
    forgotten: int = 0  # jobs past their retention
    uploads: int = 0  # that no submission has named for long
    presigned: int = 0  # files announced by clients, past their time; their objects are not counted
    objects: int = 0  # of the others


class Purge:
    """Any number may run: each step can be repeated."""

    def __init__(self, sessions: Sessions, storage: Storage, tidy_after_s: float, upload_retain_s: float) -> None:
        self.sessions = sessions
        self.storage = storage
        self.tidy_after = timedelta(seconds=tidy_after_s)
        self.upload_retain = timedelta(seconds=upload_retain_s)

    def purge(self) -> Purged:
        """Look once. Raises OperationalError; what was not done is done next time."""
        with self.sessions() as session:
            past, ended = expired(session, TOGETHER), untidy(session, self.tidy_after, TOGETHER)
            unused = UploadRepository(session).unused(self.upload_retain, TOGETHER)
            announced = presigned.past(session, TOGETHER)
        gone = [objects for job in past if (objects := self.try_to(self.forget, job)) is not None]
        tidy = [objects for job in ended if (objects := self.try_to(self.tidy, job)) is not None]
        uploads = sum(map(self.forget_upload, unused))
        files = sum(map(self.forget_announced, announced))
        self.keep_books()
        objects = sum(gone + tidy) + uploads
        return Purged(tidied=len(tidy), forgotten=len(gone), uploads=uploads, presigned=files, objects=objects)

    def keep_books(self) -> None:
        """A transaction for each, so that none holds up the others."""
        with self.sessions.begin() as session:
            batches.forget_empty(session, TOGETHER)
        with self.sessions() as session:
            tenants = quotas.due(session, TOGETHER)
        for tenant in tenants:
            with self.sessions.begin() as session:
                quotas.measure(session, tenant)

    def forget_upload(self, upload: Upload) -> bool:
        """Whether it is gone: one that a job still needs stays."""
        try:
            with self.sessions.begin() as session:
                UploadRepository(session).remove(upload.tenant, upload.sha256, self.storage, self.upload_retain)
        except UploadInUse:
            with self.sessions.begin() as session:
                UploadRepository(session).touch(upload.tenant, upload.sha256)
            return False
        except (UploadNotFound, StorageUnavailable):
            return False
        return True

    def forget_announced(self, announced: PresignedUpload) -> bool:
        """Whether it is gone, with what was sent of it."""
        try:
            with self.sessions.begin() as session:
                presigned.forget(session, announced, self.storage)
        except StorageUnavailable as error:
            logger.warning("what was sent as %s stays: %s", announced.id, error)
            return False
        return True

    def try_to(self, action: Callable[[Job], int], job: Job) -> int | None:
        """None when it cannot be done now: one job must not hold up the others."""
        try:
            return action(job)
        except StorageUnavailable as error:
            logger.warning("job %s keeps what it stored: %s", job.id, error)
            return None

    def tidy(self, job: Job) -> int:
        """Delete every object that no artifact of the job is; how many."""
        with self.sessions.begin() as session:
            keep = needed(session, job)
            strays = [key for key in self.storage.keys(job_prefix(job.tenant, job.id)) if key not in keep]
            self.storage.remove(strays)
            tidied(session, job)
        return len(strays)

    def forget(self, job: Job) -> int:
        with self.sessions.begin() as session:
            return forget(session, self.storage, job) if still_expired(session, job) else 0
