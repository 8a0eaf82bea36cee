"""The purge: delete objects that killed attempts left, jobs past their retention, and uploads that are no longer used."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from jobs.database import Sessions
from jobs.errors import StorageUnavailable, UploadInUse, UploadNotFound
from jobs.queue import batches
from jobs.storage import presigned
from jobs.storage import uploads as upload_rows
from jobs.storage.objects import Storage, job_prefix
from jobs.storage.retention import delete_job, list_expired, list_untidy, lock_expired, lock_needed_keys, mark_tidied
from jobs.tables import Job, PresignedUpload, Upload
from jobs.tenants import quotas

CHUNK_ROWS = 100  # of each kind, purged at once
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PurgeResult:
    """What one purge deleted."""

    tidied: int = 0  # ended jobs that now have nothing but their result
    deleted: int = 0  # jobs past their retention
    uploads: int = 0  # that no submission has named for long
    presigned: int = 0  # announced files past their time; their objects are not counted
    objects: int = 0  # of jobs and uploads


class Purger:
    """The deletion of what is no longer needed. Any number may run, because each step can be repeated."""

    def __init__(self, sessions: Sessions, storage: Storage, tidy_after_s: float, upload_retain_s: float) -> None:
        self.sessions = sessions
        self.storage = storage
        self.tidy_after = timedelta(seconds=tidy_after_s)
        self.upload_retain = timedelta(seconds=upload_retain_s)

    def purge(self) -> PurgeResult:
        """Purge once. Raises OperationalError; the next purge does what was not done."""
        with self.sessions() as session:
            expired, untidy = list_expired(session, CHUNK_ROWS), list_untidy(session, self.tidy_after, CHUNK_ROWS)
            unused = upload_rows.unused(session, self.upload_retain, CHUNK_ROWS)
            announced = presigned.past(session, CHUNK_ROWS)
        deleted = [objects for job in expired if (objects := self.skip_unavailable(self.delete_job, job)) is not None]
        tidied = [objects for job in untidy if (objects := self.skip_unavailable(self.tidy_job, job)) is not None]
        uploads = sum(map(self.delete_upload, unused))
        files = sum(map(self.delete_announced, announced))
        self.update_sums()
        objects = sum(deleted + tidied) + uploads
        return PurgeResult(tidied=len(tidied), deleted=len(deleted), uploads=uploads, presigned=files, objects=objects)

    def update_sums(self) -> None:
        """Delete empty batches and measure tenants, each in its own transaction, so that none holds up the others."""
        with self.sessions.begin() as session:
            batches.delete_empty(session, CHUNK_ROWS)
        with self.sessions() as session:
            tenants = quotas.list_unmeasured(session, CHUNK_ROWS)
        for tenant in tenants:
            with self.sessions.begin() as session:
                quotas.measure_stored_bytes(session, tenant)

    def delete_upload(self, upload: Upload) -> bool:
        """Delete an upload unless a job needs it; return whether it is gone."""
        try:
            with self.sessions.begin() as session:
                upload_rows.remove(session, upload.tenant, upload.sha256, self.storage, self.upload_retain)
        except UploadInUse:
            with self.sessions.begin() as session:
                upload_rows.touch(session, upload.tenant, upload.sha256)
            return False
        except (UploadNotFound, StorageUnavailable):
            return False
        return True

    def delete_announced(self, announced: PresignedUpload) -> bool:
        """Delete an announced file with the bytes that were sent; return whether it is gone."""
        try:
            with self.sessions.begin() as session:
                presigned.forget(session, announced, self.storage)
        except StorageUnavailable as error:
            logger.warning("what was sent as %s stays: %s", announced.id, error)
            return False
        return True

    def skip_unavailable(self, action: Callable[[Job], int], job: Job) -> int | None:
        """Run an action on a job; return None when the store is away, because one job must not hold up the others."""
        try:
            return action(job)
        except StorageUnavailable as error:
            logger.warning("job %s keeps what it stored: %s", job.id, error)
            return None

    def tidy_job(self, job: Job) -> int:
        """Delete the objects of a job that none of its artifacts names; return how many."""
        with self.sessions.begin() as session:
            keep = lock_needed_keys(session, job)
            strays = [key for key in self.storage.keys(job_prefix(job.tenant, job.id)) if key not in keep]
            self.storage.remove(strays)
            mark_tidied(session, job)
        return len(strays)

    def delete_job(self, job: Job) -> int:
        """Delete a job past its retention; return how many objects."""
        with self.sessions.begin() as session:
            return delete_job(session, self.storage, job) if lock_expired(session, job) else 0
