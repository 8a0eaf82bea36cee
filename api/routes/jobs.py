"""/v1/jobs: submit, look, cancel, stop, retry, delete, download."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from pydantic import StringConstraints

from api.contract import JOB_BODY
from api.dependencies import ManifestDep, SessionsDep, StorageDep, TenantDep, TenantInputs, UnitDep
from api.problems import ProblemDocument
from api.schemas import ArtifactView, FramePage, JobPage, JobView
from api.submissions import PostedJob, posted_job, with_upload
from jobs import idempotency, retention
from jobs.checkpoints import Manifest
from jobs.database import Sessions
from jobs.decoding import decode, decode_mask
from jobs.errors import JobActive
from jobs.models import Job
from jobs.repository import JobRepository
from jobs.states import JobState
from jobs.submission import Submission, check_submission

LOOK_S = 0.25  # between two looks of who waits
LONGEST_WAIT_S = 60
Expansion = Literal["artifacts", "attempts"]
KeyHeader = Header(min_length=1, max_length=255, pattern="^[ -~]+$")
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Nothing has changed since that ETag."}}
ERRORS = {status: {"model": ProblemDocument} for status in (404, 409, 413, 422, 503)}
Limit = Annotated[int, Query(ge=1, le=200)]
Text = StringConstraints(max_length=200, pattern="^[^\x00]*$")  # Postgres has no NUL
router = APIRouter(responses=ERRORS)  # type: ignore[arg-type]


@router.post("", status_code=202, openapi_extra=JOB_BODY)
def submit(
    posted: Annotated[PostedJob, Depends(posted_job)], manifest: ManifestDep, storage: StorageDep, tenant: TenantDep,
    unit: UnitDep, response: Response, idempotency_key: Annotated[str | None, KeyHeader] = None,
) -> JobView:  # fmt: skip
    """Accept an edit and return at once; poll the job for its outcome.

    Repeated with the same Idempotency-Key within a day, the first answer comes again and no second job is made.
    """
    inputs = TenantInputs(tenant, unit, storage)
    fingerprint = posted.fingerprint() if idempotency_key is not None else ""
    return answer_once(inputs, response, idempotency_key, fingerprint, lambda: store(posted, manifest, inputs))


def answer_once(inputs: TenantInputs, response: Response, key: str | None, fingerprint: str, make: Callable[[], Job]) -> JobView:
    """A new job, or for a key seen before the answer given then."""
    session, tenant = inputs.unit.session, inputs.tenant
    earlier = None if key is None else idempotency.begin(session, tenant, key, fingerprint)
    if earlier is not None:
        response.headers["Idempotency-Replayed"] = "true"
    view = JobView.of(make()) if earlier is None else JobView.model_validate(earlier)
    if key is not None and earlier is None:
        idempotency.remember(session, tenant, key, view.model_dump(mode="json"))
    response.headers["Location"] = view.links.self
    return view


def store(posted: PostedJob, manifest: Manifest, inputs: TenantInputs) -> Job:
    """Check everything, keep what came along, queue the job."""
    photo = None if posted.image is None else decode(posted.image, "image")
    mask = None if posted.movable_png is None else decode_mask(posted.movable_png, "movable")
    document = posted.document if photo is None else with_upload(posted.document, photo.sha256)
    submission = check_submission(document, manifest, mask, replace(inputs, posted=photo))
    for part in (photo, mask):
        if part is not None:
            inputs.unit.uploads.add(inputs.tenant, part, inputs.storage)
    return queue_job(inputs, submission)


def queue_job(inputs: TenantInputs, submission: Submission) -> Job:
    job = inputs.unit.jobs.add(uuid4(), inputs.tenant, submission)
    inputs.unit.wake.append(job.pool)
    return job


@router.get("")
def page(
    tenant: TenantDep, unit: UnitDep, state: JobState | None = None, model: Annotated[str, Text] | None = None,
    batch: UUID | None = None, cursor: Annotated[int | None, Query(ge=1, lt=2**63)] = None, limit: Limit = 50,
) -> JobPage:  # fmt: skip
    """Jobs, the newest first."""
    jobs = unit.jobs.page(tenant, limit=limit + 1, before=cursor, state=state, model=model, batch=batch)
    more = str(jobs[limit - 1].seq) if len(jobs) > limit else None
    return JobPage(jobs=[JobView.of(job) for job in jobs[:limit]], next_cursor=more)


@router.get("/{job_id}", response_model=JobView, responses=NOT_MODIFIED)
async def get(
    job_id: UUID, tenant: TenantDep, sessions: SessionsDep, response: Response,
    expand: Annotated[list[Expansion], Query()] = [],  # noqa: B006
    if_none_match: Annotated[str | None, Header(max_length=500)] = None,
    prefer: Annotated[str | None, Header(max_length=200, description="wait=SECONDS, at most 60")] = None,
) -> JobView | Response:  # fmt: skip
    """One job: state, progress with the points now, and with ?expand=artifacts what it has stored besides frames, with
    ?expand=attempts who ran it.

    An ETag seen before is answered by 304 while nothing has changed. With `Prefer: wait=25` the answer comes when something
    has, or without an ETag when the job has ended, or after 25 seconds.
    """
    seen = [] if if_none_match is None else [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    until = time.monotonic() + wished_wait_s(prefer)
    while True:
        view = await run_in_threadpool(look, sessions, tenant, job_id, expand)
        etag = tag_of(view)
        settled = etag not in seen if seen else view.state.terminal
        if settled or time.monotonic() >= until:
            break
        await asyncio.sleep(LOOK_S)  # without a thread or a connection of the database
    headers = {"ETag": etag} | ({"Preference-Applied": prefer} if prefer and wished_wait_s(prefer) else {})
    if etag in seen:
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return view


def look(sessions: Sessions, tenant: str, job_id: UUID, expand: list[Expansion]) -> JobView:
    with sessions() as session:
        jobs = JobRepository(session)
        job = jobs.get(tenant, job_id)
        artifacts = jobs.artifacts(job) if "artifacts" in expand else None
        return JobView.of(job, artifacts, jobs.attempts(job) if "attempts" in expand else None)


def wished_wait_s(prefer: str | None) -> int:
    """What a Prefer header says about waiting; others of its words are not for us."""
    for wish in (prefer or "").split(","):
        name, _, value = wish.strip().partition("=")
        if name.lower() == "wait" and value.isdecimal():
            return min(int(value), LONGEST_WAIT_S)
    return 0


def tag_of(view: JobView) -> str:
    return f'"{hashlib.sha256(view.model_dump_json().encode()).hexdigest()[:32]}"'


@router.delete("/{job_id}", status_code=204)
def delete(job_id: UUID, tenant: TenantDep, unit: UnitDep, storage: StorageDep) -> None:
    """Remove an ended job, all that is stored of it, and everything known about it; uploads stay."""
    job = unit.jobs.get(tenant, job_id, lock=True)
    if not JobState(job.state).terminal:
        raise JobActive(f"job {job_id} is {job.state}: cancel it first")
    retention.forget(unit.session, storage, job)


@router.post("/{job_id}/retry", status_code=202)
def retry(
    job_id: UUID, manifest: ManifestDep, tenant: TenantDep, unit: UnitDep, storage: StorageDep, response: Response,
    idempotency_key: Annotated[str | None, KeyHeader] = None,
) -> JobView:  # fmt: skip
    """The same edit as a new job, once this one has ended. An Idempotency-Key makes it safe to ask again."""
    inputs = TenantInputs(tenant, unit, storage)

    def again() -> Job:
        job = unit.jobs.get(tenant, job_id)
        if not JobState(job.state).terminal:
            raise JobActive(f"job {job_id} is {job.state}: it may still succeed")
        return queue_job(inputs, check_submission(job.spec | {"start_before": None}, manifest, inputs=inputs))

    return answer_once(inputs, response, idempotency_key, f"retry {job_id}", again)


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
