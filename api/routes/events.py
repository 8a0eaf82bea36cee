"""/v1/jobs/{id}/events: what happens to a job, as it happens."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import SQLAlchemyError

from api.auth import Reader
from api.change_notifier import ChangeNotifier
from api.dependencies import SessionsDep, SettingsDep
from api.routes.jobs import look
from api.schemas.jobs import EventView, JobView
from api.schemas.problems import ERRORS
from jobs.database import Sessions
from jobs.errors import JobNotFound, RateLimited
from jobs.queue import events
from jobs.tenants.keys import Principal

PAUSE_S = 15.0  # between two looks when nothing tells of a change
BETWEEN_S = 0.4  # at least, between two snapshots
RETRY_MS = 2000  # what a client that lost the connection waits
router = APIRouter(responses=ERRORS)


class Streams:
    """How many each key has open in this process."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    @contextmanager
    def one(self, who: Principal, most: int) -> Iterator[None]:
        """Raises RateLimited."""
        if self.open[who.key] >= most:
            raise RateLimited(f"this key may follow {most} jobs at a time")
        self.open[who.key] += 1
        try:
            yield
        finally:
            self.open[who.key] -= 1


async def one_stream(request: Request, who: Reader, settings: SettingsDep) -> AsyncIterator[Principal]:
    streams: Streams = request.app.state.streams
    with streams.one(who, who.max_streams or settings.max_streams):
        yield who


async def first_look(job_id: UUID, who: Reader, sessions: SessionsDep) -> None:
    """What is not there is 404 before the stream begins. Raises JobNotFound."""
    await run_in_threadpool(look, sessions, who.tenant, job_id)


@router.get("/{job_id}/events", response_class=EventSourceResponse, dependencies=[Depends(first_look)])
async def follow(
    job_id: UUID, who: Annotated[Principal, Depends(one_stream)], sessions: SessionsDep, request: Request,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**63)] = None,
) -> AsyncIterator[ServerSentEvent]:  # fmt: skip
    """The job as it stands (`snapshot`), then its events with their ids (`job.running`, `job.succeeded`, ...) and a new
    snapshot whenever its progress changes; ends with the job.

    A client that comes back with Last-Event-ID gets every event it has missed, however long ago and whichever process serves it.
    """
    watcher: ChangeNotifier = request.app.state.watcher
    last, shown = last_event_id, ""
    while True:
        try:
            story = await watcher.once((who.tenant, job_id, last), partial(read, sessions, who.tenant, job_id, last))
        except JobNotFound:
            return  # deleted background_thread
        except SQLAlchemyError:
            await asyncio.sleep(RETRY_MS / 1000)
            continue
        for event in story.told:
            yield ServerSentEvent(event=event.type, id=str(event.seq), data=event, retry=RETRY_MS)
        last = story.last
        if (text := story.view.model_dump_json()) != shown:
            shown = text
            yield ServerSentEvent(event="snapshot", id=str(last), raw_data=text, retry=RETRY_MS)
        if story.view.state.terminal:
            return
        await asyncio.sleep(BETWEEN_S)
        await watcher.changed(job_id, story.version, PAUSE_S)


@dataclass(frozen=True)
class Story:
    """How a job stands, and what has happened to it since."""

    told: list[EventView]
    last: int  # seq to go on after
    view: JobView
    version: str


def read(sessions: Sessions, tenant: str, job_id: UUID, last: int | None) -> Story:
    """Events after `last`, by default those from now on. Raises JobNotFound."""
    with sessions() as session:
        since = events.get_last_seq(session, job_id) if last is None else last
    view, version = look(sessions, tenant, job_id)
    with sessions() as session:  # after the look: of a job that it saw ended, all has been told
        told = [EventView.of(event) for event in events.list_since(session, job_id, since)]
    return Story(told, told[-1].seq if told else since, view, version)
