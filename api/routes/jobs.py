"""/v1/jobs: submit, look, cancel, stop, retry, delete."""

import hashlib
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import StringConstraints
from sqlalchemy.orm import Session

from api.auth import Reader, Submitter
from api.change_notifier import ChangeNotifier
from api.dependencies import SessionsDep, StorageDep, UnitDep
from api.openapi import JOB_BODY, MAKES_A_JOB, NO_NUL
from api.paging import Cursor, Limit, paged
from api.schemas.jobs import JobPage, JobView, Verdict
from api.schemas.problems import ERRORS
from api.submissions import PostedDep, PostedJob, SubmissionsDep
from jobs.database import Sessions
from jobs.errors import JobActive
from jobs.queue import idempotency
from jobs.queue import jobs as job_rows
from jobs.queue.estimates import estimate_position, estimate_run_time
from jobs.queue.events import get_versions
from jobs.states import JobState
from jobs.storage import artifacts as artifact_rows
from jobs.storage import retention
from jobs.tables import Job
from jobs.tenants import audit

LONGEST_WAIT_S = 60
Expansion = Literal["artifacts", "attempts"]
KeyHeader = Annotated[str | None, Header(min_length=1, max_length=255, pattern="^[ -~]+$")]
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Nothing has changed since that ETag."}}
Text = Annotated[str, StringConstraints(max_length=200, pattern=NO_NUL)]
router = APIRouter(responses=ERRORS)


@router.post("", status_code=202, response_model=JobView, openapi_extra=JOB_BODY, responses=MAKES_A_JOB)
def submit(intake: SubmissionsDep, posted: PostedDep, idempotency_key: KeyHeader = None) -> Response:
    """Accept an edit and return at once; poll the job for its outcome.

    Repeated with the same Idempotency-Key within a day, the first answer comes again and no second job is made.
    """

    def make() -> Job:
        return intake.queue(intake.check(posted), uuid4())

    return answer_once(intake.unit.session, intake.tenant, idempotency_key, posted, make)


def answer_once(
    session: Session, tenant: str, key: str | None, posted: PostedJob | None, make: Callable[[], Job], what: str = ""
) -> Response:
    """A new job, or for a key seen before the answer given then."""
    if key is None:
        return accepted(JobView.of(make()).model_dump(mode="json"))
    fingerprint = what if posted is None else posted.fingerprint()
    earlier = idempotency.begin(session, tenant, key, fingerprint)
    if earlier is not None:
        return accepted(earlier, {"Idempotency-Replayed": "true"})
    answer = JobView.of(make()).model_dump(mode="json")
    idempotency.remember(session, tenant, key, answer)
    return accepted(answer)


def accepted(job: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(job, status_code=202, headers={"Location": job["links"]["self"]} | (headers or {}))


@router.put("/{job_id}", status_code=202, response_model=JobView, openapi_extra=JOB_BODY, responses=MAKES_A_JOB)
def put(job_id: UUID, intake: SubmissionsDep, posted: PostedDep) -> JobView:
    """Submit a job under an id of the client's own; again with the same job changes nothing and shows how it stands."""
    return JobView.of(intake.put(posted, job_id))


@router.post(":validate", openapi_extra=JOB_BODY)
def validate(intake: SubmissionsDep, posted: PostedDep) -> Verdict:
    """Check a job as a submission would, and queue nothing: its defaults, its cost, when it would start."""
    submission, session = intake.check(posted).submission, intake.unit.session
    intake.room.check(session, intake.tenant, more=1)
    spec = submission.spec
    imagined = Job(tenant=intake.tenant, pool=submission.pool, model=spec.model, priority=spec.priority)
    return Verdict.of(spec, estimate_run_time(session, spec.model), estimate_position(session, imagined).starts_in_s)


@router.get("")
def page(
    who: Reader, unit: UnitDep, state: JobState | None = None, model: Text | None = None, batch: UUID | None = None,
    cursor: Cursor = None, limit: Limit = 50,
) -> JobPage:  # fmt: skip
    """Jobs, the newest first."""
    found = job_rows.page(unit.session, who.tenant, limit=limit + 1, before=cursor, state=state, model=model, batch=batch)
    jobs, more = paged(found, limit, lambda job: job.seq)
    return JobPage(jobs=list(map(JobView.of, jobs)), next_cursor=more)


@router.get("/{job_id}", response_model=JobView, responses=NOT_MODIFIED)
async def get(
    job_id: UUID, who: Reader, sessions: SessionsDep, request: Request, response: Response,
    expand: Annotated[list[Expansion], Query()] = [],  # noqa: B006
    if_none_match: Annotated[str | None, Header(max_length=500)] = None,
    prefer: Annotated[str | None, Header(max_length=200, description="wait=SECONDS, at most 60")] = None,
) -> JobView | Response:  # fmt: skip
    """One job: state, progress with the points now, its place while it is queued, the latest frame while it runs; with
    ?expand=artifacts what it has stored besides frames, with ?expand=attempts who ran it.

    An ETag seen before is answered by 304 while nothing has changed. With `Prefer: wait=25` the answer comes when something
    has, or without an ETag when the job has ended, or after 25 seconds.
    """
    seen = [] if if_none_match is None else [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    watcher: ChangeNotifier = request.app.state.watcher
    until = time.monotonic() + wished_wait_s(prefer)
    while True:
        view, version = await run_in_threadpool(look, sessions, who.tenant, job_id, expand)
        etag, left = tag_of(view), until - time.monotonic()
        settled = etag not in seen if seen else view.state.terminal
        if settled or left <= 0:
            break
        await watcher.changed(job_id, version, left)  # without a thread or a connection of the database
    headers = {"ETag": etag} | ({"Preference-Applied": prefer} if prefer and wished_wait_s(prefer) else {})
    if etag in seen:
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return view


def look(sessions: Sessions, tenant: str, job_id: UUID, expand: list[Expansion] = []) -> tuple[JobView, str]:  # noqa: B006
    """The job as it stands, and the version of its row. Raises JobNotFound."""
    with sessions() as session:
        version = get_versions(session, [job_id]).get(job_id, "")  # before the job: a change in between is seen as one
        job = job_rows.get(session, tenant, job_id)
        artifacts = artifact_rows.list_without_frames(session, job) if "artifacts" in expand else None
        view = JobView.of(job, artifacts, job_rows.list_attempts(session, job) if "attempts" in expand else None)
        if job.state == JobState.QUEUED:
            view = view.placed(estimate_position(session, job))
        elif job.state == JobState.RUNNING:
            view = view.shown(artifact_rows.find_latest_frame(session, job))
        return view, version


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
def delete(job_id: UUID, who: Submitter, unit: UnitDep, storage: StorageDep) -> None:
    """Remove an ended job, all that is stored of it, and everything known about it; uploads stay."""
    job = job_rows.get(unit.session, who.tenant, job_id, lock=True)
    if not JobState(job.state).terminal:
        raise JobActive(f"job {job_id} is {job.state}: cancel it first")
    retention.delete_job(unit.session, storage, job)
    audit.record(unit.session, who.tenant, who.key, "job.delete", job_id)


@router.post("/{job_id}/retry", status_code=202, response_model=JobView)
def retry(job_id: UUID, intake: SubmissionsDep, idempotency_key: KeyHeader = None) -> Response:
    """The same edit as a new job, once this one has ended. An Idempotency-Key makes it safe to ask again."""

    def again() -> Job:
        job = job_rows.get(intake.unit.session, intake.tenant, job_id)
        if not JobState(job.state).terminal:
            raise JobActive(f"job {job_id} is {job.state}: it may still succeed")
        named = [UUID(webhook) for webhook in job.spec.get("webhooks", [])]
        left = {"webhooks": [str(webhook) for webhook in intake.inputs.webhooks(named)]}  # of them; others were deleted
        return intake.queue(intake.check(PostedJob(job.spec | {"start_before": None} | left)), uuid4())

    return answer_once(intake.unit.session, intake.tenant, idempotency_key, None, again, f"retry {job_id}")


@router.post("/{job_id}/cancel")
def cancel(job_id: UUID, who: Submitter, unit: UnitDep) -> JobView:
    """Throw the job away: at once while it waits, within an iteration or two while it runs. Repeating it changes nothing."""
    job = job_rows.request_cancel(unit.session, who.tenant, job_id)
    audit.record(unit.session, who.tenant, who.key, "job.cancel", job_id)
    return JobView.of(job)


@router.post("/{job_id}/stop")
def stop(job_id: UUID, who: Submitter, unit: UnitDep) -> JobView:
    """End a running drag and keep its picture as the result, to look and go on from. Repeating it changes nothing."""
    return JobView.of(job_rows.request_stop(unit.session, who.tenant, job_id))
