"""/v1/uploads: photos, masks and latents that jobs refer to."""

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from api.contract import UPLOAD_BODY
from api.dependencies import StorageDep, TenantDep, UnitDep
from api.problems import ProblemDocument
from api.schemas import UploadView
from jobs.decoding import decode

ERRORS = {status: {"model": ProblemDocument} for status in (404, 413, 422, 503)}
router = APIRouter(responses=ERRORS)  # type: ignore[arg-type]


@router.post("", status_code=201, openapi_extra=UPLOAD_BODY)
async def upload(request: Request, tenant: TenantDep, unit: UnitDep, storage: StorageDep) -> UploadView:
    """Check, re-encode and keep what the body holds; the same content again is the same upload.

    Pictures become upright sRGB PNGs without metadata; latents float32 safetensors.
    """
    body = await request.body()
    decoded = await run_in_threadpool(decode, body, "body")
    return UploadView.model_validate(await run_in_threadpool(unit.uploads.add, tenant, decoded, storage))


@router.get("/{sha256}")
def get(sha256: str, tenant: TenantDep, unit: UnitDep) -> UploadView:
    """What is known about an upload."""
    return UploadView.model_validate(unit.uploads.get(tenant, sha256))
