"""/v1/uploads: photos, masks and latents that jobs refer to."""

from typing import Literal

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from api.contract import UPLOAD_BODY
from api.dependencies import StorageDep, TenantDep, UnitDep
from api.problems import ProblemDocument
from api.schemas import UploadView
from jobs.decoding import decode, decode_mask
from jobs.spec import UploadId

ERRORS = {status: {"model": ProblemDocument} for status in (404, 413, 422, 503)}
router = APIRouter(responses=ERRORS)  # type: ignore[arg-type]


@router.post("", status_code=201, openapi_extra=UPLOAD_BODY)
async def upload(
    request: Request, tenant: TenantDep, unit: UnitDep, storage: StorageDep, kind: Literal["mask"] | None = None
) -> UploadView:
    """Check, re-encode and keep what the body holds; the same content again is the same upload.

    Pictures become upright sRGB PNGs without metadata; latents float32 safetensors; with ?kind=mask a PNG becomes a movable
    mask, set where any channel but alpha is not zero.
    """
    body = await request.body()
    decoded = await run_in_threadpool(decode_mask if kind else decode, body, "body")
    return UploadView.model_validate(await run_in_threadpool(unit.uploads.add, tenant, decoded, storage))


@router.get("/{sha256}")
def get(sha256: UploadId, tenant: TenantDep, unit: UnitDep) -> UploadView:
    """What is known about an upload."""
    return UploadView.model_validate(unit.uploads.get(tenant, sha256))
