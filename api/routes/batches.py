"""/v1/batches: submit many jobs together, count them, cancel them, and stream how they ended."""

import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from uuid import UUID

from anyio import CapacityLimiter
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from api.auth import Reader, Submitter
from api.concurrency import run_to_end
from api.dependencies import SessionsDep, UnitOfWorkDep
from api.openapi import BATCH_BODY, JSONL
from api.paging import Cursor, Limit, split_page
from api.routes.parameters import IdempotencyKey
from api.routing import ApiRoute, stream_in_share
from api.schemas.batches import BatchHead, BatchLine, BatchPage, BatchView
from api.schemas.problems import ERRORS
from api.services.batch_turns import CHECKED_AT_ONCE, BatchTurns
from api.services.batches import BatchServiceDep
from api.spooling import spool_body
from jobs.database import Sessions
from jobs.queue import batches
from jobs.queue.batches import CHUNK_ROWS, UNSUCCESSFUL_STATES
from jobs.states import JobState
from jobs.tables import Batch
from jobs.tenants import audit

TURNS = BatchTurns()
THREADS = CapacityLimiter(CHECKED_AT_ONCE)  # of their own: a batch is checked for long
router = APIRouter(responses=ERRORS, route_class=ApiRoute)


@router.post("", status_code=202, response_model=BatchView, openapi_extra=BATCH_BODY)
async def submit(request: Request, service: BatchServiceDep, idempotency_key: IdempotencyKey = None) -> Response:
    """Queue up to 50,000 edits, one {"custom_id": ..., "job": {...}} a line. They run when nothing else waits.

    A line that is no job is recorded and keeps no other line out. The batch is stored whole or not at all.
    """
    async with TURNS.arrival(service.tenant):
        with tempfile.TemporaryFile() as file:
            digest = await spool_body(request, file)
            async with TURNS.check(service.tenant):
                submit = partial(service.submit, file, digest, idempotency_key)
                accepted = await run_to_end(submit, THREADS)
    return accepted.response(202)


@router.get("")
def page(principal: Reader, unit_of_work: UnitOfWorkDep, cursor: Cursor = None, limit: Limit = 50) -> BatchPage:
    """List batches, the newest first."""
    rows = batches.page(unit_of_work.session, principal.tenant, limit=limit + 1, before=cursor)
    page, next_cursor = split_page(rows, limit, lambda batch: batch.seq)
    return BatchPage(batches=list(map(BatchHead.model_validate, page)), next_cursor=next_cursor)


@router.get("/{batch_id}")
def get(batch_id: UUID, principal: Reader, unit_of_work: UnitOfWorkDep) -> BatchView:
    """Return a batch, with how many of its jobs are in which state."""
    batch = batches.get(unit_of_work.session, principal.tenant, batch_id)
    return BatchView.of(batches.summarize(unit_of_work.session, batch))


@router.post("/{batch_id}/cancel")
def cancel(batch_id: UUID, principal: Submitter, unit_of_work: UnitOfWorkDep) -> BatchView:
    """Cancel the jobs that wait or run; those that have ended stay. Repeating it changes nothing."""
    batch = batches.cancel(unit_of_work.session, principal.tenant, batch_id)
    audit.record(unit_of_work.session, principal.tenant, principal.key, "batch.cancel", batch_id)
    return BatchView.of(batches.summarize(unit_of_work.session, batch))


@router.get("/{batch_id}/results", response_class=StreamingResponse, responses=JSONL)
def results(batch_id: UUID, principal: Reader, sessions: SessionsDep) -> StreamingResponse:
    """Stream a line for each job that has succeeded so far, in the order they were sent."""
    batch = find_batch(sessions, principal.tenant, batch_id)
    return jsonl_response(job_lines(sessions, batch, [JobState.SUCCEEDED]))


@router.get("/{batch_id}/errors", response_class=StreamingResponse, responses=JSONL)
def errors(batch_id: UUID, principal: Reader, sessions: SessionsDep) -> StreamingResponse:
    """Stream a line for each line that is no job, then for each job that failed, was canceled or expired."""
    return jsonl_response(error_lines(sessions, find_batch(sessions, principal.tenant, batch_id)))


def find_batch(sessions: Sessions, tenant: str, batch_id: UUID) -> Batch:
    """Return a batch before anything is streamed. Raises BatchNotFound."""
    with sessions() as session:
        return batches.get(session, tenant, batch_id)


def error_lines(sessions: Sessions, batch: Batch) -> Iterator[BatchLine]:
    """Yield lines of what is no job, then of jobs that ended badly."""
    yield from refusal_lines(sessions, batch)
    yield from job_lines(sessions, batch, UNSUCCESSFUL_STATES)


def job_lines(sessions: Sessions, batch: Batch, states: Iterable[JobState]) -> Iterator[BatchLine]:
    """Yield lines of jobs, read by pages with a session each: a slow reader holds no transaction open."""
    after, more = 0, True
    while more:
        with sessions() as session:
            jobs = batches.list_jobs(session, batch, states, after=after, limit=CHUNK_ROWS)
        yield from map(BatchLine.of, jobs)
        more, after = bool(jobs), jobs[-1].seq if jobs else after


def refusal_lines(sessions: Sessions, batch: Batch) -> Iterator[BatchLine]:
    """Yield lines of what is no job, read by pages too."""
    after, more = 0, True
    while more:
        with sessions() as session:
            rows = batches.list_refusals(session, batch, after=after, limit=CHUNK_ROWS)
        yield from map(BatchLine.refused, rows)
        more, after = bool(rows), rows[-1].line if rows else after


def jsonl_response(lines: Iterable[BatchLine]) -> StreamingResponse:
    chunks = (line.model_dump_json() + "\n" for line in lines)
    return StreamingResponse(stream_in_share(chunks), media_type="application/jsonl")
