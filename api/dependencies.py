"""What routes are given: a unit of work, and the clients that the application holds.

Those that only hand something on are coroutines: they need no thread of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from jobs.checkpoints import Manifest
from jobs.database import Sessions
from jobs.queue import Queue
from jobs.repository import JobRepository
from jobs.settings import Settings
from jobs.storage import Storage
from jobs.uploads import UploadRepository


async def settings(request: Request) -> Settings:
    return request.app.state.settings  # type: ignore[no-any-return]


def manifest(request: Request) -> Manifest:
    return request.app.state.checkpoints.current()  # type: ignore[no-any-return]


async def storage(request: Request) -> Storage:
    return request.app.state.storage  # type: ignore[no-any-return]


async def queue(request: Request) -> Queue:
    return request.app.state.queue  # type: ignore[no-any-return]


async def sessions(request: Request) -> Sessions:
    return request.app.state.sessions  # type: ignore[no-any-return]


@dataclass
class Unit:
    """One request, one transaction; workers are woken after it is committed."""

    session: Session
    jobs: JobRepository
    uploads: UploadRepository
    wake: list[str] = field(default_factory=list)  # pools whose workers get a message


def unit(request: Request) -> Iterator[Unit]:
    with request.app.state.sessions.begin() as session:
        work = Unit(session, JobRepository(session), UploadRepository(session))
        yield work
    for pool in work.wake:
        request.app.state.queue.wake(pool)


SettingsDep = Annotated[Settings, Depends(settings)]
ManifestDep = Annotated[Manifest, Depends(manifest)]
SessionsDep = Annotated[Sessions, Depends(sessions)]
StorageDep = Annotated[Storage, Depends(storage)]
QueueDep = Annotated[Queue, Depends(queue)]
# scope="function": commit before the answer leaves, or a client could poll a job that is not there yet
UnitDep = Annotated[Unit, Depends(unit, scope="function")]
