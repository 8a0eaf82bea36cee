"""/v1/jobs: submit, look, cancel, download."""

from typing import Annotated, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import RedirectResponse
from pydantic import StringConstraints

from api.contract import JOB_BODY
from api.dependencies import ManifestDep, StorageDep, TenantDep, TenantInputs, UnitDep
from api.problems import ProblemDocument
from api.schemas import ArtifactView, FramePage, JobPage, JobView
from api.submissions import PostedJob, posted_job, with_upload
from jobs.decoding import decode, decode_mask
from jobs.states import JobState
from jobs.submission import check_submission

ERRORS = {status: {"model": ProblemDocument} for status in (404, 409, 413, 422, 503)}
Limit = Annotated[int, Query(ge=1, le=200)]
Text = StringConstraints(max_length=200, pattern="^[^\x00]*$")  # Postgres has no NUL
router = APIRouter(responses=ERRORS)  # type: ignore[arg-type]


@router.post("", status_code=202, openapi_extra=JOB_BODY)
def submit(
    posted: Annotated[PostedJob, Depends(posted_job)], manifest: ManifestDep, storage: StorageDep, tenant: TenantDep,
    unit: UnitDep, response: Response,
) -> JobView:  # fmt: skip
    """Accept an edit and return at once; poll the job for its outcome."""
    photo = None if posted.image is None else decode(posted.image, "image")
    mask = None if posted.movable_png is None else decode_mask(posted.movable_png, "movable")
    document = posted.document if photo is None else with_upload(posted.document, photo.sha256)
    submission = check_submission(document, manifest, mask, TenantInputs(tenant, unit, storage, photo))
    for part in (photo, mask):
        if part is not None:
            unit.uploads.add(tenant, part, storage)
    job = unit.jobs.add(uuid4(), tenant, submission)
    unit.wake.append(job.pool)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return JobView.of(job)


@router.get("")
def page(
    tenant: TenantDep, unit: UnitDep, state: JobState | None = None, model: Annotated[str, Text] | None = None,
    batch: UUID | None = None, cursor: Annotated[int | None, Query(ge=1, lt=2**63)] = None, limit: Limit = 50,
) -> JobPage:  # fmt: skip
    """Jobs, the newest first."""
    jobs = unit.jobs.page(tenant, limit=limit + 1, before=cursor, state=state, model=model, batch=batch)
    more = str(jobs[limit - 1].seq) if len(jobs) > limit else None
    return JobPage(jobs=[JobView.of(job) for job in jobs[:limit]], next_cursor=more)


@router.get("/{job_id}")
def get(job_id: UUID, tenant: TenantDep, unit: UnitDep, expand: Literal["artifacts"] | None = None) -> JobView:
    """One job: state, progress with the points now, and with ?expand=artifacts what it has stored besides frames."""
    job = unit.jobs.get(tenant, job_id)
    return JobView.of(job, unit.jobs.artifacts(job) if expand else None)


@router.post("/{job_id}/cancel")
def cancel(job_id: UUID, tenant: TenantDep, unit: UnitDep) -> JobView:
    """Throw the job away: at once while it waits, within an iteration or two while it runs. Repeating it changes nothing."""
    return JobView.of(unit.jobs.request_cancel(tenant, job_id))


@router.post("/{job_id}/stop")
def stop(job_id: UUID, tenant: TenantDep, unit: UnitDep) -> JobView:
    """End a running drag and keep its picture as the result, to look and go on from. Repeating it changes nothing."""
    return JobView.of(unit.jobs.request_stop(tenant, job_id))


@router.get("/{job_id}/frames")
def frames(job_id: UUID, tenant: TenantDep, unit: UnitDep, cursor: Annotated[str, Text] = "", limit: Limit = 100) -> FramePage:
    """The frames stored so far, by iteration; also while the drag runs."""
    found = unit.jobs.frames(unit.jobs.get(tenant, job_id), after=cursor, limit=limit + 1)
    more = found[limit - 1].name if len(found) > limit else None
    return FramePage(frames=[ArtifactView.of(frame) for frame in found[:limit]], next_cursor=more)


@router.get("/{job_id}/artifacts/{name:path}", status_code=307, response_class=RedirectResponse)
def download(job_id: UUID, name: Annotated[str, Text], tenant: TenantDep, unit: UnitDep, storage: StorageDep) -> str:
    """Redirect to a short-lived link of the store."""
    artifact = unit.jobs.artifact(unit.jobs.get(tenant, job_id), name)
    return storage.url(artifact.key, f"{job_id}-{name.replace('/', '-')}")
