"""/v1/uploads: photos, masks and latents that jobs refer to."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Literal
from uuid import UUID

from anyio import CapacityLimiter
from fastapi import APIRouter, Request

from api.auth import Reader, Submitter
from api.concurrency import run_to_end
from api.dependencies import StorageDep, UnitOfWorkDep
from api.openapi import ANNOUNCES_AN_UPLOAD, UPLOAD_BODY
from api.routing import ApiRoute
from api.schemas.problems import ERRORS
from api.schemas.uploads import AnnouncedFile, PresignedView, UploadView
from api.services.presigned_uploads import PresignedUploadServiceDep
from api.services.uploads import UploadServiceDep
from api.spooling import read_blocks, spool_body
from jobs.spec.job_spec import UploadId
from jobs.storage import uploads as upload_rows
from jobs.storage.decoding import check_size, decode_stream
from jobs.tenants import audit

THREADS = CapacityLimiter(32)  # of their own: uploads wait for their turn
router = APIRouter(responses=ERRORS, route_class=ApiRoute)


@router.post("", status_code=201, response_model=UploadView, openapi_extra=UPLOAD_BODY)
async def upload(request: Request, uploads: UploadServiceDep, kind: Literal["mask"] | None = None) -> Callable[[], UploadView]:
    """Check, re-encode and keep the file in the body. The same content again is the same upload.

    Pictures become upright sRGB PNGs without metadata. Latents become float32 safetensors. With ?kind=mask a PNG becomes a
    movable mask, set where any channel but alpha is not zero.
    """
    with tempfile.TemporaryFile() as file:
        await spool_body(request, file)
        check_size(file.seek(0, os.SEEK_END), "body")
        decoding = partial(decode_stream, read_blocks(file), kind, "body", uploads.tenant)
        decoded = await run_to_end(decoding, THREADS)
    return lambda: UploadView.model_validate(uploads.keep(decoded))


@router.post("/presigned", status_code=201, responses=ANNOUNCES_AN_UPLOAD)
def presign(file: AnnouncedFile, presigned_uploads: PresignedUploadServiceDep) -> PresignedView:
    """Announce a file of up to 200 MB and get a link to the store. Send the file to the link, then complete the upload."""
    return presigned_uploads.announce(file)


@router.post("/presigned/{presigned_id}/complete", status_code=201)
def complete(presigned_id: UUID, presigned_uploads: PresignedUploadServiceDep) -> UploadView:
    """Check, re-encode and keep a file that was sent to its link. A repeated request returns the same upload.

    An id is known until an hour after its link has expired.
    """
    return UploadView.model_validate(presigned_uploads.complete(presigned_id))


@router.get("/{sha256}")
def get(sha256: UploadId, principal: Reader, unit_of_work: UnitOfWorkDep) -> UploadView:
    """Return what is known about an upload."""
    return UploadView.model_validate(upload_rows.get(unit_of_work.session, principal.tenant, sha256))


@router.delete("/{sha256}", status_code=204)
def delete(sha256: UploadId, principal: Submitter, unit_of_work: UnitOfWorkDep, storage: StorageDep) -> None:
    """Delete an upload, unless a job that has not ended needs it."""
    upload_rows.remove(unit_of_work.session, principal.tenant, sha256, storage)
    audit.record(unit_of_work.session, principal.tenant, principal.key, "upload.delete", sha256)
