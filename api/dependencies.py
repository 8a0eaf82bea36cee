"""FastAPI dependencies: the unit of work of a request, and the clients that the application holds.

Dependencies that only return something are coroutines: they need no thread of their own.
"""

from typing import Annotated

from fastapi import Depends, Request

from api.change_notifier import ChangeNotifier
from api.unit_of_work import UnitOfWork
from jobs.database import Sessions
from jobs.models.manifest import ManifestFile
from jobs.settings import Settings
from jobs.storage.objects import Storage
from jobs.tenants.quotas import QueueQuota


async def settings(request: Request) -> Settings:
    return request.app.state.settings  # type: ignore[no-any-return]


async def manifest_file(request: Request) -> ManifestFile:
    return request.app.state.manifest_file  # type: ignore[no-any-return]


async def storage(request: Request) -> Storage:
    return request.app.state.storage  # type: ignore[no-any-return]


async def queue_quota(request: Request) -> QueueQuota:
    return request.app.state.queue_quota  # type: ignore[no-any-return]


async def change_notifier(request: Request) -> ChangeNotifier:
    return request.app.state.change_notifier  # type: ignore[no-any-return]


async def sessions(request: Request) -> Sessions:
    return request.app.state.sessions  # type: ignore[no-any-return]


async def unit_of_work(request: Request) -> UnitOfWork:
    """Begin the unit of work of a request. The route class commits it after the route, or rolls it back if the route raises."""
    state = request.app.state
    request.state.unit_of_work = work = UnitOfWork(state.sessions(), state.broker, state.storage)
    return work


SettingsDep = Annotated[Settings, Depends(settings)]
SessionsDep = Annotated[Sessions, Depends(sessions)]
StorageDep = Annotated[Storage, Depends(storage)]
ManifestFileDep = Annotated[ManifestFile, Depends(manifest_file)]
QueueQuotaDep = Annotated[QueueQuota, Depends(queue_quota)]
ChangeNotifierDep = Annotated[ChangeNotifier, Depends(change_notifier)]
UnitOfWorkDep = Annotated[UnitOfWork, Depends(unit_of_work)]
