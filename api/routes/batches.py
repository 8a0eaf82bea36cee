"""/v1/batches: many jobs sent together, counted, canceled, and told of line by line."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import IO, Any, Self
from uuid import UUID

from anyio import CapacityLimiter
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.auth import Reader, Submitter
from api.dependencies import SessionsDep, UnitDep
from api.openapi import BATCH_BODY, JSONL
from api.paging import Cursor, Limit, paged
from api.routes.jobs import KeyHeader
from api.schemas.jobs import JobFailure, Row, artifact_url, failure
from api.schemas.problems import ERRORS, FieldProblem
from api.submissions import SubmissionsDep, SubmissionService
from jobs.database import Sessions
from jobs.queue import batches, idempotency
from jobs.queue.batches import CHUNK_ROWS, UNSUCCESSFUL_STATES, BatchSummary
from jobs.states import JobState
from jobs.tables import Batch, Job, Refusal
from jobs.tenants import audit

IN_MEMORY = 2**20  # bytes of a batch; the rest lies in a temporary file while it is read
MOST_WOKEN = 64  # workers of a pool; each that ends a job wakes another while jobs wait
AT_ONCE = CapacityLimiter(2)  # batches that are stored
router = APIRouter(responses=ERRORS)


class BatchHead(Row):
    id: UUID
    lines: int  # that were sent
    refused: int  # of them, because they are no jobs; /errors says why
    created_at: datetime
    cancel_requested_at: datetime | None


class BatchView(BatchHead):
    counts: dict[JobState, int]  # of the others, by state
    finished_at: datetime | None  # when the last job ended

    @classmethod
    def of(cls, summary: BatchSummary) -> Self:
        head = BatchHead.model_validate(summary.batch).model_dump()
        return cls(**head, counts={JobState(state): n for state, n in summary.counts.items()}, finished_at=summary.finished_at)


class BatchPage(BaseModel):
    batches: list[BatchHead]  # the newest first
    next_cursor: str | None


class BatchLine(BaseModel):
    """How one line ended."""

    line: int | None = None  # of one that is no job
    custom_id: str | None
    job: UUID | None = None
    state: str  # a job's, or refused
    stop_reason: str | None = None
    result: str | None = None  # where result.png is
    error: JobFailure | None = None
    problems: list[FieldProblem] = []

    @classmethod
    def of(cls, job: Job) -> Self:
        done = job.state == JobState.SUCCEEDED
        return cls(
            custom_id=job.custom_id, job=job.id, state=job.state, stop_reason=job.stop_reason, error=failure(job),
            result=artifact_url(job.id, "result.png") if done else None,
        )  # fmt: skip

    @classmethod
    def refused(cls, refusal: Refusal) -> Self:
        problems = [FieldProblem(**problem) for problem in refusal.problems]
        return cls(line=refusal.line, custom_id=refusal.custom_id, state="refused", problems=problems)


@router.post("", status_code=202, response_model=BatchView, openapi_extra=BATCH_BODY)
async def submit(request: Request, intake: SubmissionsDep, idempotency_key: KeyHeader = None) -> Response:
    """Broker up to 50,000 edits: one {"custom_id": ..., "job": {...}} a line. They run when nothing else waits.

    Lines that are no jobs are noted and keep nobody else out. The batch is stored whole or not at all.
    """
    digest = hashlib.sha256()
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as file:
        async for chunk in request.stream():
            digest.update(chunk)
            await run_in_threadpool(file.write, chunk)
        async with AT_ONCE:  # each holds a connection for long
            return await run_in_threadpool(accept, intake, file, idempotency_key, digest.hexdigest())


def accept(intake: SubmissionService, file: IO[bytes], key: str | None, fingerprint: str) -> Response:
    """A new batch, or for a key seen before the answer given then."""
    session, tenant = intake.unit.session, intake.tenant
    if key is not None and (earlier := idempotency.begin(session, tenant, key, fingerprint)) is not None:
        return answered(earlier, {"Idempotency-Replayed": "true"})
    file.seek(0)
    batch, reading = batches.add(session, tenant, lines_of(file), intake.manifest, intake.inputs)
    intake.room.check(session, tenant, more=0)  # they are in the queue already
    for pool, count in reading.pools.items():
        intake.unit.wake += [pool] * min(count, MOST_WOKEN)
    answer = BatchView.of(batches.summarize(session, batch)).model_dump(mode="json")
    if key is not None:
        idempotency.remember(session, tenant, key, answer)
    return answered(answer)


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """Never more than a line's limit at once: the rest of a longer one is skipped, so that it is refused as too long."""
    while line := file.readline(batches.MAX_LINE_BYTES + 1):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(batches.MAX_LINE_BYTES + 1)):
            pass


def answered(batch: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(batch, status_code=202, headers={"Location": f"/v1/batches/{batch['id']}"} | (headers or {}))


@router.get("")
def page(who: Reader, unit: UnitDep, cursor: Cursor = None, limit: Limit = 50) -> BatchPage:
    """Batches, the newest first."""
    found = batches.page(unit.session, who.tenant, limit=limit + 1, before=cursor)
    page, more = paged(found, limit, lambda batch: batch.seq)
    return BatchPage(batches=list(map(BatchHead.model_validate, page)), next_cursor=more)


@router.get("/{batch_id}")
def get(batch_id: UUID, who: Reader, unit: UnitDep) -> BatchView:
    """How many of its jobs are in which state."""
    return view(unit.session, batches.get(unit.session, who.tenant, batch_id))


def view(session: Session, batch: Batch) -> BatchView:
    return BatchView.of(batches.summarize(session, batch))


@router.post("/{batch_id}/cancel")
def cancel(batch_id: UUID, who: Submitter, unit: UnitDep) -> BatchView:
    """Throw away what waits and what runs; what is done stays. Repeating it changes nothing."""
    batch = batches.cancel(unit.session, who.tenant, batch_id)
    audit.record(unit.session, who.tenant, who.key, "batch.cancel", batch_id)
    return view(unit.session, batch)


@router.get("/{batch_id}/results", response_class=StreamingResponse, responses=JSONL)
def results(batch_id: UUID, who: Reader, sessions: SessionsDep) -> StreamingResponse:
    """A line for each job that has succeeded so far, in the order they were sent."""
    return stream(ended(sessions, opened(sessions, who.tenant, batch_id), [JobState.SUCCEEDED]))


@router.get("/{batch_id}/errors", response_class=StreamingResponse, responses=JSONL)
def errors(batch_id: UUID, who: Reader, sessions: SessionsDep) -> StreamingResponse:
    """A line for each line that is no job, then for each job that failed, was canceled or expired."""
    batch = opened(sessions, who.tenant, batch_id)

    def lines() -> Iterator[BatchLine]:
        yield from refused(sessions, batch)
        yield from ended(sessions, batch, UNSUCCESSFUL_STATES)

    return stream(lines())


def opened(sessions: Sessions, tenant: str, batch_id: UUID) -> Batch:
    """Raises BatchNotFound, before anything is streamed."""
    with sessions() as session:
        return batches.get(session, tenant, batch_id)


def ended(sessions: Sessions, batch: Batch, states: Iterable[JobState]) -> Iterator[BatchLine]:
    """By pages, each with a session of its own: a slow reader holds no transaction open."""
    after, found = 0, True
    while found:
        with sessions() as session:
            jobs = batches.list_jobs(session, batch, states, after=after, limit=CHUNK_ROWS)
        yield from map(BatchLine.of, jobs)
        found, after = bool(jobs), jobs[-1].seq if jobs else after


def refused(sessions: Sessions, batch: Batch) -> Iterator[BatchLine]:
    after, found = 0, True
    while found:
        with sessions() as session:
            rows = batches.list_refusals(session, batch, after=after, limit=CHUNK_ROWS)
        yield from map(BatchLine.refused, rows)
        found, after = bool(rows), rows[-1].line if rows else after


def stream(lines: Iterable[BatchLine]) -> StreamingResponse:
    return StreamingResponse((line.model_dump_json() + "\n" for line in lines), media_type="application/jsonl")
