"""FastAPI dependencies: the unit of work of a request, and the clients that the application holds.

Dependencies that only return something are coroutines: they need no thread of their own.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.change_notifier import ChangeNotifier
from jobs.database import Sessions
from jobs.errors import StorageUnavailable
from jobs.models.manifest import ManifestFile, ModelManifest
from jobs.queue.broker import Broker
from jobs.settings import Settings
from jobs.storage.objects import Storage
from jobs.tenants.quotas import QueueQuota


async def settings(request: Request) -> Settings:
    return request.app.state.settings  # type: ignore[no-any-return]


async def manifest_file(request: Request) -> ManifestFile:
    return request.app.state.manifest_file  # type: ignore[no-any-return]


def manifest(manifest_file: Annotated[ManifestFile, Depends(manifest_file)]) -> ModelManifest:
    """Return the models there are now, in a thread: the disk may be slow."""
    return manifest_file.current()


async def storage(request: Request) -> Storage:
    return request.app.state.storage  # type: ignore[no-any-return]


async def broker(request: Request) -> Broker:
    return request.app.state.broker  # type: ignore[no-any-return]


async def queue_quota(request: Request) -> QueueQuota:
    return request.app.state.queue_quota  # type: ignore[no-any-return]


async def change_notifier(request: Request) -> ChangeNotifier:
    return request.app.state.change_notifier  # type: ignore[no-any-return]


async def sessions(request: Request) -> Sessions:
    return request.app.state.sessions  # type: ignore[no-any-return]


# threads of their own: those of the routes may all be waiting for a connection that only the end of another request frees
COMMIT_THREADS = CapacityLimiter(16)


@dataclass
class UnitOfWork:
    """The transaction of one request, and what follows once it is committed."""

    session: Session
    pools_to_wake: list[str] = field(default_factory=list)  # one wake-up message for each entry
    objects_to_delete: list[str] = field(default_factory=list)  # their keys


async def unit_of_work(request: Request) -> AsyncIterator[UnitOfWork]:
    """Begin a unit of work; commit it after the route, or roll it back if the route raises.

    The session connects with its first statement, in the route's thread; only the end needs a thread of its own.
    """
    session: Session = request.app.state.sessions()
    work = UnitOfWork(session)
    try:
        yield work
    except BaseException:
        with CancelScope(shield=True):  # also when the client has gone
            await to_thread.run_sync(session.close, limiter=COMMIT_THREADS)
        raise
    await to_thread.run_sync(commit, work, request.app.state.broker, request.app.state.storage, limiter=COMMIT_THREADS)


def commit(work: UnitOfWork, broker: Broker, storage: Storage) -> None:
    """Commit the transaction, then wake workers and delete objects."""
    with work.session as session:
        session.commit()
    for pool in work.pools_to_wake:
        if not broker.send_wake_up(pool):
            break  # the broker is away: the reconciler sends the messages again
    with suppress(StorageUnavailable):  # the reconciler's purge deletes what is left
        storage.remove(work.objects_to_delete)


SettingsDep = Annotated[Settings, Depends(settings)]
ManifestDep = Annotated[ModelManifest, Depends(manifest)]
SessionsDep = Annotated[Sessions, Depends(sessions)]
StorageDep = Annotated[Storage, Depends(storage)]
ManifestFileDep = Annotated[ManifestFile, Depends(manifest_file)]
BrokerDep = Annotated[Broker, Depends(broker)]
QueueQuotaDep = Annotated[QueueQuota, Depends(queue_quota)]
ChangeNotifierDep = Annotated[ChangeNotifier, Depends(change_notifier)]
# scope="function": commit before the response leaves, or a client could poll a job that is not there yet
UnitOfWorkDep = Annotated[UnitOfWork, Depends(unit_of_work, scope="function")]
