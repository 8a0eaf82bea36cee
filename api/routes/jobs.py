"""/v1/jobs: submit, read, cancel, stop, retry, delete."""

import hashlib
import time
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response

from api.accepted import Accepted
from api.auth import Reader, Submitter
from api.dependencies import ChangeNotifierDep, SessionsDep, StorageDep, UnitOfWorkDep
from api.openapi import JOB_BODY, MAKES_A_JOB
from api.paging import Cursor, Limit
from api.posted_jobs import PostedJobDep
from api.routes.parameters import IdempotencyKey, Text
from api.routing import ApiRoute, run_in_share
from api.schemas.jobs import JobPage, JobSummary, JobView, Verdict
from api.schemas.problems import ERRORS
from api.services.job_reads import Expansion, read_job
from api.services.jobs import JobServiceDep
from jobs.errors import JobActive
from jobs.queue import jobs as job_rows
from jobs.queue.jobs import JobFilter
from jobs.states import JobState
from jobs.storage import retention
from jobs.tenants import audit

MAX_WAIT_S = 60
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Nothing has changed since that ETag."}}
router = APIRouter(responses=ERRORS, route_class=ApiRoute)


@router.post("", status_code=202, response_model=JobView, openapi_extra=JOB_BODY, responses=MAKES_A_JOB)
def submit(jobs: JobServiceDep, posted: PostedJobDep, idempotency_key: IdempotencyKey = None) -> Accepted:
    """Accept an edit and return at once. Poll the job for its outcome.

    A request repeated with its Idempotency-Key within a day gets the first answer again, and no second job is made.
    """
    return jobs.submit(posted, idempotency_key)


@router.put("/{job_id}", status_code=202, response_model=JobView, openapi_extra=JOB_BODY, responses=MAKES_A_JOB)
def put(job_id: UUID, jobs: JobServiceDep, posted: PostedJobDep) -> JobView:
    """Submit a job under an id that the client chooses. The same job again changes nothing and is returned as it is now."""
    return JobView.of(jobs.submit_with_id(posted, job_id))


@router.post(":validate", openapi_extra=JOB_BODY)
def validate(jobs: JobServiceDep, posted: PostedJobDep) -> Verdict:
    """Check a job as a submission would, and queue nothing. The answer shows its defaults, its cost and when it would start."""
    return jobs.validate(posted)


@router.get("")
def page(
    principal: Reader, unit_of_work: UnitOfWorkDep, state: JobState | None = None, model: Text | None = None,
    batch: UUID | None = None, cursor: Cursor = None, limit: Limit = 50,
    expand: Annotated[list[Literal["spec"]], Query()] = [],  # noqa: B006
) -> JobPage:  # fmt: skip
    """List jobs, the newest first. With ?expand=spec each has its spec, and a page may hold fewer jobs than its limit."""
    wanted = JobFilter(state=state, model=model, batch=batch)
    with_spec = "spec" in expand
    jobs, more = job_rows.page(unit_of_work.session, principal.tenant, wanted, limit=limit, before=cursor, with_spec=with_spec)
    summaries = [JobSummary.of(job, with_spec=with_spec) for job in jobs]
    return JobPage(jobs=summaries, next_cursor=str(jobs[-1].seq) if more else None)


@router.get("/{job_id}", response_model=JobView, responses=NOT_MODIFIED)
async def get(
    job_id: UUID, request: Request, principal: Reader, sessions: SessionsDep, change_notifier: ChangeNotifierDep,
    expand: Annotated[list[Expansion], Query()] = [],  # noqa: B006
    if_none_match: Annotated[str | None, Header(max_length=500)] = None,
    prefer: Annotated[str | None, Header(max_length=200, description="wait=SECONDS, at most 60")] = None,
) -> Response:  # fmt: skip
    """Return one job: its state, its progress with the points now, its place while it is queued, the latest frame while it
    runs. With ?expand=artifacts the answer lists what it has stored besides frames, with ?expand=attempts who ran it.

    An ETag seen before is answered by 304 while nothing has changed. With `Prefer: wait=25` the answer comes when something
    has changed, or without an ETag when the job has ended, or after 25 seconds.
    """
    seen_etags = [] if if_none_match is None else [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    wait_s = preferred_wait_s(prefer)
    deadline = time.monotonic() + wait_s
    while True:
        reading = await run_in_share(request, read_job, sessions, principal.tenant, job_id, expand)
        etag, left_s = make_etag(reading.json), deadline - time.monotonic()
        done = etag not in seen_etags if seen_etags else reading.state.terminal
        if done or left_s <= 0:
            break
        row_id, version = reading.row_id, reading.version
        del reading  # which may be large; nor is a thread or a database connection held
        await change_notifier.wait_for_change(row_id, version, left_s)
    headers = {"ETag": etag} | ({"Preference-Applied": prefer} if prefer and wait_s else {})
    if etag in seen_etags:
        return Response(status_code=304, headers=headers)
    return Response(reading.json, headers=headers, media_type="application/json")


def preferred_wait_s(prefer: str | None) -> int:
    """Return how long a Prefer header asks to wait; its other preferences are ignored."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.strip().partition("=")
        if name.lower() == "wait" and value.isdecimal():
            return min(int(value), MAX_WAIT_S)
    return 0


def make_etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


@router.delete("/{job_id}", status_code=204)
def delete(job_id: UUID, principal: Submitter, unit_of_work: UnitOfWorkDep, storage: StorageDep) -> None:
    """Delete an ended job with everything stored and known about it. Uploads stay."""
    job = job_rows.get(unit_of_work.session, principal.tenant, job_id, lock=True)
    if not JobState(job.state).terminal:
        raise JobActive(f"job {job.public_id} is {job.state}: cancel it first")
    retention.delete_job(unit_of_work.session, storage, job)
    audit.record(unit_of_work.session, principal.tenant, principal.key, "job.delete", job.public_id)


@router.post("/{job_id}/retry", status_code=202, response_model=JobView)
def retry(job_id: UUID, jobs: JobServiceDep, idempotency_key: IdempotencyKey = None) -> Accepted:
    """Queue the edit of an ended job again, as a new job. An Idempotency-Key makes it safe to repeat the request."""
    return jobs.retry(job_id, idempotency_key)


@router.post("/{job_id}/cancel")
def cancel(job_id: UUID, principal: Submitter, unit_of_work: UnitOfWorkDep) -> JobView:
    """Cancel a job: at once while it waits, within an iteration or two while it runs. Repeating it changes nothing."""
    job = job_rows.request_cancel(unit_of_work.session, principal.tenant, job_id)
    audit.record(unit_of_work.session, principal.tenant, principal.key, "job.cancel", job.public_id)
    return JobView.of(job)


@router.post("/{job_id}/stop")
def stop(job_id: UUID, principal: Submitter, unit_of_work: UnitOfWorkDep) -> JobView:
    """End a running drag and keep its picture as the result, from which another job may go on. Repeating it changes nothing."""
    return JobView.of(job_rows.request_stop(unit_of_work.session, principal.tenant, job_id))
