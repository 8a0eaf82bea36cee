"""What the lines of a batch may refer to: looked up once for each batch, in sessions that end before the line is checked."""

from collections.abc import Collection
from functools import lru_cache
from typing import NoReturn
from uuid import UUID

from sqlalchemy.orm import Session

from jobs.database import Sessions
from jobs.errors import InvalidJob, JobNotFound, Problem, UploadNotFound
from jobs.queue import jobs
from jobs.spec.crop_transform import CropTransform
from jobs.spec.mask_cut import sees_any
from jobs.storage import uploads
from jobs.storage.decoding import read_outline
from jobs.storage.mask_outline import MaskOutline
from jobs.storage.objects import Storage, upload_key
from jobs.tables import Job, Upload
from jobs.webhooks import subscriptions as webhooks

MAX_KEPT = 1_000  # of each kind of input, those used last
MAX_CUTS = 100  # pairs of a mask and a crop of which only the pixels tell whether the model sees any
DECODER_WAIT_S = 60.0
NEEDED_OF_PARENT = ("id", "client_id", "tenant", "state", "model", "parent", "root", "parent_client_id", "root_client_id")


class BatchInputs:
    """The uploads, jobs and webhooks of one tenant that the lines of one batch refer to.

    Nothing is locked while lines are checked. `lock` finds again what the jobs are made from, and keeps it.
    """

    def __init__(self, tenant: str, sessions: Sessions, storage: Storage) -> None:
        self.tenant = tenant
        self.sessions = sessions
        self.storage = storage
        self.cuts = 0
        self.used_uploads: set[str] = set()
        self.used_jobs: set[UUID] = set()
        self.find_upload = lru_cache(MAX_KEPT)(self.query_upload)
        self.find_job = lru_cache(MAX_KEPT)(self.query_job)
        self.find_webhooks = lru_cache(MAX_KEPT)(self.query_webhooks)
        self.find_outline = lru_cache(MAX_KEPT)(self.read_outline)
        self.cut = lru_cache(MAX_KEPT)(self.cut_mask)

    def get_upload(self, sha256: str) -> Upload:
        """Return an upload. Raises UploadNotFound."""
        upload = self.find_upload(sha256)
        if upload is None:
            raise UploadNotFound(f"there is no upload {sha256}")
        self.used_uploads.add(sha256)
        return upload

    def query_upload(self, sha256: str) -> Upload | None:
        with self.sessions() as session:
            return uploads.find(session, self.tenant, sha256)

    def get_outline(self, upload: Upload) -> MaskOutline:
        """Return the outline of a mask. Raises ObjectMissing, StorageUnavailable, DecoderBusy."""
        return MaskOutline.from_bytes(upload.outline) if upload.outline is not None else self.find_outline(upload.sha256)

    def read_outline(self, sha256: str) -> MaskOutline:
        """Return and store the outline of a mask from before there were outlines."""
        outline = read_outline(self.storage.stream(upload_key(self.tenant, sha256)), "movable", self.tenant, DECODER_WAIT_S)
        with self.sessions.begin() as session:
            uploads.set_outline(session, self.tenant, sha256, outline.to_bytes())
        return outline

    def sees_any(self, upload: Upload, crop_transform: CropTransform) -> bool:
        """Return whether the model sees any of a mask. Raises InvalidJob, ObjectMissing, StorageUnavailable, DecoderBusy."""
        return self.cut(upload.sha256, crop_transform)

    def cut_mask(self, sha256: str, crop_transform: CropTransform) -> bool:
        """Let a child cut a mask."""
        self.cuts += 1
        if self.cuts > MAX_CUTS:
            refuse_cut()
        parts = self.storage.stream(upload_key(self.tenant, sha256))
        return sees_any(parts, crop_transform, self.tenant, DECODER_WAIT_S)

    def get_job(self, job_id: UUID) -> Job:
        """Return an earlier job, of whose chain the photo is still there. Raises JobNotFound, UploadNotFound."""
        job, photo = self.find_job(job_id)
        job = jobs.require(job, job_id)
        if photo is not None:
            self.get_upload(photo)
        self.used_jobs.add(job.id)
        return job

    def query_job(self, job_id: UUID) -> tuple[Job | None, str | None]:
        """Return a job without its spec, and the photo that its chain began with."""
        with self.sessions() as session:
            job = jobs.find(session, self.tenant, job_id)
            if job is None:
                return None, None
            return Job(**{name: getattr(job, name) for name in NEEDED_OF_PARENT}), jobs.find_photo(session, job)

    def known_webhooks(self, ids: Collection[UUID]) -> Collection[UUID]:
        """Return those of the ids that are webhooks of the tenant."""
        return self.find_webhooks(frozenset(ids)) if ids else ()

    def query_webhooks(self, ids: frozenset[UUID]) -> Collection[UUID]:
        with self.sessions() as session:
            return webhooks.find_known_ids(session, self.tenant, ids)

    def lock(self, session: Session) -> None:
        """Keep everything that was used from removal until the transaction ends. Raises UploadNotFound, JobNotFound."""
        uploads.use_all(session, self.tenant, self.used_uploads)
        missing = jobs.keep_all(session, self.tenant, self.used_jobs)
        if missing is not None:
            raise JobNotFound(f"the job {missing} was deleted while the batch was checked: send it again")


def refuse_cut() -> NoReturn:
    message = f"is so fine for its crop that only its pixels tell whether the model sees any: a batch may have {MAX_CUTS} such"
    raise InvalidJob([Problem(field="movable.upload", message=message)])
