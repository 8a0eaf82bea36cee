"""Submitting: reading a posted job, checking it, queueing it.

A job comes as JSON, or as multipart with the parts job (JSON), image (a photo) and movable (PNG).
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, Self
from uuid import UUID

from fastapi import Depends, Request
from pydantic import JsonValue
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from api.auth import Submitter
from api.dependencies import StorageDep, Unit, UnitDep
from jobs.database import Sessions
from jobs.errors import IdTaken, InvalidJob, NotUploaded, Problem
from jobs.models.manifest import ManifestFile, ModelManifest
from jobs.queue import jobs
from jobs.spec.job_spec import JobSpec, Movable
from jobs.spec.validation import Submission, check_submission, parse_spec
from jobs.storage import presigned, uploads
from jobs.storage.decoding import Decoded, decode, decode_mask
from jobs.storage.objects import Storage, raw_key, upload_key
from jobs.storage.uploads import row_of
from jobs.tables import Job, PresignedUpload, Upload
from jobs.tenants.quotas import QueueQuota, check_announced_upload_quota, check_upload_quota
from jobs.webhooks import subscriptions as webhooks

PARTS = ("job", "image", "movable")


@dataclass(frozen=True)
class PostedJob:
    document: JsonValue
    image: bytes | None = None
    movable_png: bytes | None = None

    def fingerprint(self) -> str:
        """sha256 of everything that was posted."""
        document = json.dumps(self.document, sort_keys=True).encode()
        parts = [hashlib.sha256(part or b"").hexdigest() for part in (document, self.image, self.movable_png)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class TenantInputs:
    """What a tenant's submission may build on."""

    tenant: str
    unit: Unit
    storage: Storage
    posted: Decoded | None = None  # the photo that came with the job and is not stored yet

    def upload(self, sha256: str) -> Upload:
        if self.posted is not None and sha256 == self.posted.sha256:
            return Upload(**row_of(self.tenant, self.posted))
        return uploads.use(self.unit.session, self.tenant, sha256)

    def content(self, sha256: str) -> bytes:
        return self.storage.get(upload_key(self.tenant, sha256))

    def job(self, job_id: UUID) -> Job:
        """With the photo that its chain began with."""
        job = jobs.get_for_share(self.unit.session, self.tenant, job_id)
        photo = jobs.find_photo(self.unit.session, job)
        if photo is not None:
            self.upload(photo)
        return job

    def webhooks(self, ids: Collection[UUID]) -> Collection[UUID]:
        return webhooks.find_known_ids(self.unit.session, self.tenant, ids)


@dataclass(frozen=True)
class Parts:
    """A posted job, its files decoded."""

    document: JsonValue
    photo: Decoded | None
    mask: Decoded | None

    @classmethod
    def of(cls, posted: PostedJob) -> Self:
        """Raises InvalidJob, DecoderBusy."""
        photo = None if posted.image is None else decode(posted.image, "image")
        mask = None if posted.movable_png is None else decode_mask(posted.movable_png, "movable")
        return cls(posted.document if photo is None else with_upload(posted.document, photo.sha256), photo, mask)

    def spec(self, manifest: ModelManifest) -> JobSpec:
        """What it asks for, whether that can be done or not. Raises InvalidJob."""
        spec = parse_spec(self.document)
        if self.mask is not None:
            spec = spec.model_copy(update={"movable": Movable(upload=self.mask.sha256)})
        return spec.resolved(manifest.get(spec.model))


@dataclass(frozen=True)
class Checked:
    """A posted job that may be queued, with the files that came along."""

    submission: Submission
    files: list[Decoded]


@dataclass(frozen=True)
class SubmissionService:
    """Where a tenant's submissions come in."""

    tenant: str
    unit: Unit
    storage: Storage
    checkpoints: ManifestFile
    room: QueueQuota

    @property
    def manifest(self) -> ModelManifest:
        return self.checkpoints.current()  # may ask a slow disk: not while a dependency is made

    @property
    def inputs(self) -> TenantInputs:
        return TenantInputs(self.tenant, self.unit, self.storage)

    def check(self, posted: PostedJob) -> Checked:
        """Raises InvalidJob and what check_submission raises; nothing is stored yet."""
        parts = Parts.of(posted)
        inputs = replace(self.inputs, posted=parts.photo)
        submission = check_submission(parts.document, self.manifest, parts.mask, inputs)
        return Checked(submission, [part for part in (parts.photo, parts.mask) if part is not None])

    def queue(self, checked: Checked, job_id: UUID) -> Job:
        """Raises QuotaExceeded, StorageUnavailable."""
        self.room.reserve(self.unit.session, self.tenant)
        for file in checked.files:
            self.keep(file)
        job = jobs.add(self.unit.session, job_id, self.tenant, checked.submission)
        self.unit.wake.append(job.pool)
        return job

    def keep(self, file: Decoded) -> Upload:
        """Raises QuotaExceeded, StorageUnavailable."""
        check_upload_quota(self.unit.session, self.tenant, file.sha256, self.room.defaults)
        return uploads.add(self.unit.session, self.tenant, file, self.storage)

    def announce(self, sha256: str, size_bytes: int, kind: str | None) -> PresignedUpload:
        """A file that its client is going to send to the store. Raises QuotaExceeded."""
        check_announced_upload_quota(self.unit.session, self.tenant, size_bytes, self.room.defaults)
        return presigned.announce(self.unit.session, self.tenant, sha256, size_bytes, kind, self.storage.link_lifetime)

    def complete(self, presigned_id: UUID, sessions: Sessions) -> Upload:
        """What an announced file has become; asked again it is the same. Raises UploadNotFound and what presigned.read does."""
        file, announced = self.read(presigned_id, sessions)
        if file is None:
            return uploads.get(self.unit.session, self.tenant, str(announced.upload))
        upload = self.keep(file)
        presigned.note_kept(self.unit.session, announced, upload.sha256)
        self.unit.needless.append(raw_key(self.tenant, presigned_id))
        return upload

    def read(self, presigned_id: UUID, sessions: Sessions) -> tuple[Decoded | None, PresignedUpload]:
        """The file, unless it is kept already; no transaction is open while it is read."""
        with sessions() as session:
            announced = presigned.get(session, self.tenant, presigned_id)
        try:
            return None if announced.upload else presigned.read(announced, self.storage), announced
        except NotUploaded:  # or kept background_thread, by a request that was sent twice
            with sessions() as session:
                announced = presigned.get(session, self.tenant, presigned_id)
            if announced.upload is None:
                raise
            return None, announced

    def put(self, posted: PostedJob, job_id: UUID) -> Job:
        """The job of that id, made now unless the same was before. Raises IdTaken when another has it."""
        if jobs.reserve_id(self.unit.session, job_id):
            return self.queue(self.check(posted), job_id)
        job = jobs.find(self.unit.session, self.tenant, job_id)
        if job is None or JobSpec.model_validate(job.spec) != Parts.of(posted).spec(self.manifest):
            raise IdTaken(f"the id {job_id} is another job's: choose a new one")
        return job


async def intake(who: Submitter, unit: UnitDep, storage: StorageDep, request: Request) -> SubmissionService:
    return SubmissionService(who.tenant, unit, storage, request.app.state.checkpoints, request.app.state.room)


async def posted_job(request: Request) -> PostedJob:
    """Raises InvalidJob when the body is not one of the two forms."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return PostedJob(parse_json(await request.body()))
    try:
        async with request.form(max_files=len(PARTS), max_fields=len(PARTS)) as form:
            named = [(name, await read_part(part)) for name, part in form.multi_items()]
    except HTTPException as error:  # starlette's word for a malformed form
        raise InvalidJob([Problem(field="body", message=str(error.detail))]) from error
    parts = dict(named)
    for name in parts:
        if name not in PARTS:
            raise InvalidJob([Problem(field=name[:100], message=f"unknown part; known parts: {', '.join(PARTS)}")])
    if len(parts) < len(named):
        raise InvalidJob([Problem(field="body", message="a part is there twice")])
    if "job" not in parts:
        raise InvalidJob([Problem(field="job", message="the part job with the JSON is missing")])
    return PostedJob(parse_json(parts["job"]), parts.get("image"), parts.get("movable"))


def with_upload(document: JsonValue, sha256: str) -> JsonValue:
    """The job with its part image as source.upload; what it says of the crop stays. Raises InvalidJob."""
    if not isinstance(document, dict):
        return document  # refused with everything else that is no job
    source = document.get("source") or {}
    if not isinstance(source, dict) or source.keys() - {"crop"}:
        message = "with the part image it may hold crop and nothing else"
        raise InvalidJob([Problem(field="source", message=message)])
    return document | {"source": source | {"upload": sha256}}


async def read_part(part: UploadFile | str) -> bytes:
    return part.encode() if isinstance(part, str) else await part.read()


def parse_json(data: bytes) -> JsonValue:
    try:
        document: JsonValue = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidJob([Problem(field="job", message=f"is not JSON ({error})")]) from error
    return document


SubmissionsDep = Annotated[SubmissionService, Depends(intake)]
PostedDep = Annotated[PostedJob, Depends(posted_job)]
