"""/v1/uploads: photos, masks and latents that jobs refer to."""

from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from api.auth import Reader, Submitter
from api.dependencies import SessionsDep, StorageDep, UnitDep
from api.openapi import ANNOUNCES_AN_UPLOAD, UPLOAD_BODY
from api.schemas.jobs import AnnouncedFile, PresignedView, UploadView
from api.schemas.problems import ERRORS
from api.submissions import SubmissionsDep
from jobs.spec.job_spec import UploadId
from jobs.storage import presigned, uploads
from jobs.storage.decoding import decode, decode_mask
from jobs.storage.objects import raw_key
from jobs.tenants import audit

router = APIRouter(responses=ERRORS)


@router.post("", status_code=201, openapi_extra=UPLOAD_BODY)
async def upload(request: Request, intake: SubmissionsDep, kind: Literal["mask"] | None = None) -> UploadView:
    """Check, re-encode and keep what the body holds; the same content again is the same upload.

    Pictures become upright sRGB PNGs without metadata; latents float32 safetensors; with ?kind=mask a PNG becomes a movable
    mask, set where any channel but alpha is not zero.
    """
    body = await request.body()
    decoded = await run_in_threadpool(decode_mask if kind else decode, body, "body")
    return UploadView.model_validate(await run_in_threadpool(intake.keep, decoded))


@router.post("/presigned", status_code=201, responses=ANNOUNCES_AN_UPLOAD)
def presign(file: AnnouncedFile, intake: SubmissionsDep, storage: StorageDep) -> PresignedView:
    """Announce a file of up to 200 MB and get a link that it is sent to, past this service; then complete it."""
    announced = intake.announce(file.sha256, file.size_bytes, file.kind)
    headers = presigned.headers(announced)
    url = storage.make_upload_url(raw_key(announced.tenant, announced.id), headers)
    return PresignedView(id=announced.id, url=url, headers=headers, expires_at=announced.expires_at)


@router.post("/presigned/{presigned_id}/complete", status_code=201)
def complete(presigned_id: UUID, intake: SubmissionsDep, sessions: SessionsDep) -> UploadView:
    """Check, re-encode and keep a file that was sent to its link; asked again, the answer is the same upload.

    An id is known until an hour after its link has expired.
    """
    return UploadView.model_validate(intake.complete(presigned_id, sessions))


@router.get("/{sha256}")
def get(sha256: UploadId, who: Reader, unit: UnitDep) -> UploadView:
    """What is known about an upload."""
    return UploadView.model_validate(uploads.get(unit.session, who.tenant, sha256))


@router.delete("/{sha256}", status_code=204)
def delete(sha256: UploadId, who: Submitter, unit: UnitDep, storage: StorageDep) -> None:
    """Remove an upload that no job needs any more which has not ended."""
    uploads.remove(unit.session, who.tenant, sha256, storage)
    audit.record(unit.session, who.tenant, who.key, "upload.delete", sha256)
