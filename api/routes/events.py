"""/v1/jobs/{id}/events: what happens to a job, as it happens."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import SQLAlchemyError

from api.auth import Reader
from api.concurrency import OpenCount
from api.dependencies import ChangeNotifierDep, SessionsDep, SettingsDep
from api.routing import ApiRoute, run_in_share
from api.schemas.events import EventView
from api.schemas.problems import ERRORS
from api.services.job_reads import JobReading, read_job
from jobs.database import Sessions
from jobs.errors import Busy, JobNotFound
from jobs.queue import events
from jobs.states import JobState
from jobs.tenants.keys import Principal

MAX_PAUSE_S = 15.0  # between two reads, when no change is notified
MIN_PAUSE_S = 0.4  # between two snapshots
RETRY_MS = 2000  # what a client that lost the connection waits
router = APIRouter(responses=ERRORS, route_class=ApiRoute)


async def counted_reader(request: Request, principal: Reader, settings: SettingsDep) -> AsyncIterator[Principal]:
    """Give the principal to a stream, and count the stream while it is open."""
    streams: OpenCount = request.app.state.open_streams
    with streams.count(principal.key, principal.max_streams or settings.max_streams):
        yield principal


async def find_row_id(job_id: UUID, request: Request, principal: Reader, sessions: SessionsDep) -> UUID:
    """Return the id of a job's row, so that an unknown job is a 404 before the stream begins. Raises JobNotFound."""
    reading: JobReading = await run_in_share(request, read_job, sessions, principal.tenant, job_id)
    return reading.row_id


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def follow(
    row_id: Annotated[UUID, Depends(find_row_id)], request: Request,
    principal: Annotated[Principal, Depends(counted_reader)], sessions: SessionsDep, change_notifier: ChangeNotifierDep,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**63)] = None,
) -> AsyncIterator[ServerSentEvent]:  # fmt: skip
    """Stream the job as it is now (`snapshot`), then its events with their ids (`job.running`, `job.succeeded`, ...) and a new
    snapshot whenever its progress changes. The stream ends with the job.

    A client that comes back with Last-Event-ID gets every event it has missed, however long ago and whichever process serves it.
    """
    after, last_shown = last_event_id, b""
    while True:
        try:
            read = partial(run_in_share, request, read_update, sessions, principal.tenant, row_id, after)
            update = await change_notifier.read_once((principal.tenant, row_id, after), read)
        except JobNotFound:
            return  # deleted in the meantime
        except (SQLAlchemyError, Busy):
            await asyncio.sleep(RETRY_MS / 1000)
            continue
        for event in update.events:
            yield ServerSentEvent(event=event.type, id=str(event.seq), data=event, retry=RETRY_MS)
        after = update.last_seq
        if (shown := hashlib.sha256(update.snapshot.encode()).digest()) != last_shown:
            last_shown = shown
            yield ServerSentEvent(event="snapshot", id=str(after), raw_data=update.snapshot, retry=RETRY_MS)
        if update.state.terminal:
            return
        version = update.version
        del update  # whose snapshot may be large
        await asyncio.sleep(MIN_PAUSE_S)
        await change_notifier.wait_for_change(row_id, version, MAX_PAUSE_S)


@dataclass(frozen=True)
class Update:
    """A job as it is now, with what has happened to it since the last read."""

    events: list[EventView]
    last_seq: int  # of the last event; the next read begins after it
    snapshot: str  # the job as JSON
    state: JobState
    version: str  # of the job's row


def read_update(sessions: Sessions, tenant: str, row_id: UUID, after: int | None) -> Update:
    """Read the job and its events after a seq, by default those from now on. Raises JobNotFound."""
    with sessions() as session:
        first = events.get_last_seq(session, row_id) if after is None else after
    reading = read_job(sessions, tenant, row_id)
    with sessions() as session:  # after the job: of one that was read as ended, all events are there
        views = [EventView.of(event) for event in events.list_since(session, row_id, first)]
    last_seq = views[-1].seq if views else first
    return Update(views, last_seq, reading.json.decode(), reading.state, reading.version)
