"""What routes are given: a unit of work, and the clients that the application holds.

Those that only hand something on are coroutines: they need no thread of their own.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import Depends, Request
from sqlalchemy.orm import Session

from jobs.database import Sessions
from jobs.errors import StorageUnavailable
from jobs.models.manifest import ModelManifest
from jobs.queue.broker import Broker
from jobs.settings import Settings
from jobs.storage.objects import Storage


async def settings(request: Request) -> Settings:
    return request.app.state.settings  # type: ignore[no-any-return]


def manifest(request: Request) -> ModelManifest:
    return request.app.state.checkpoints.current()  # type: ignore[no-any-return]


async def storage(request: Request) -> Storage:
    return request.app.state.storage  # type: ignore[no-any-return]


async def queue(request: Request) -> Broker:
    return request.app.state.queue  # type: ignore[no-any-return]


async def sessions(request: Request) -> Sessions:
    return request.app.state.sessions  # type: ignore[no-any-return]


# threads of their own: those of the routes may all be waiting for a connection that only the end of another request frees
ENDINGS = CapacityLimiter(16)


@dataclass
class Unit:
    """One request, one transaction; after it is committed workers are woken and objects removed."""

    session: Session
    wake: list[str] = field(default_factory=list)  # pools whose workers get a message
    needless: list[str] = field(default_factory=list)  # keys of objects that nothing needs once it is committed


async def unit(request: Request) -> AsyncIterator[Unit]:
    """The session connects with its first statement, which a route's own thread sends; only the end needs one more."""
    session: Session = request.app.state.sessions()
    work = Unit(session)
    try:
        yield work
    except BaseException:
        with CancelScope(shield=True):  # also when the client has gone
            await to_thread.run_sync(session.close, limiter=ENDINGS)
        raise
    await to_thread.run_sync(commit, work, request.app.state.queue, request.app.state.storage, limiter=ENDINGS)


def commit(work: Unit, queue: Broker, storage: Storage) -> None:
    with work.session as session:
        session.commit()
    all(queue.send_wake_up(pool) for pool in work.wake)  # not the others while the broker is away
    with suppress(StorageUnavailable):  # the purge comes by again
        storage.remove(work.needless)


SettingsDep = Annotated[Settings, Depends(settings)]
ManifestDep = Annotated[ModelManifest, Depends(manifest)]
SessionsDep = Annotated[Sessions, Depends(sessions)]
StorageDep = Annotated[Storage, Depends(storage)]
QueueDep = Annotated[Broker, Depends(queue)]
# scope="function": commit before the answer leaves, or a client could poll a job that is not there yet
UnitDep = Annotated[Unit, Depends(unit, scope="function")]
