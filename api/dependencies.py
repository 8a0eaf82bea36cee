"""What routes are given: who asks, a unit of work, and the clients that the application holds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from jobs.checkpoints import Manifest
from jobs.database import Sessions
from jobs.decoding import Decoded
from jobs.models import DEFAULT_TENANT, Job, Upload
from jobs.queue import Queue
from jobs.repository import JobRepository
from jobs.storage import Storage, upload_key
from jobs.uploads import UploadRepository, row_of


def tenant() -> str:
    """Until there are keys, everybody is the one tenant."""
    return DEFAULT_TENANT


def manifest(request: Request) -> Manifest:
    return request.app.state.checkpoints.current()  # type: ignore[no-any-return]


def storage(request: Request) -> Storage:
    return request.app.state.storage  # type: ignore[no-any-return]


def queue(request: Request) -> Queue:
    return request.app.state.queue  # type: ignore[no-any-return]


def sessions(request: Request) -> Sessions:
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


@dataclass(frozen=True)
class TenantInputs:
    """What a tenant's submission may build on."""

    tenant: str
    unit: Unit
    storage: Storage
    posted: Decoded | None = None  # the photo that came with the job and is not stored yet

    def upload(self, sha256: str) -> Upload:
        if self.posted is not None and sha256 == self.posted.sha256:
            return Upload(**row_of(self.tenant, self.posted))
        return self.unit.uploads.get(self.tenant, sha256)

    def content(self, sha256: str) -> bytes:
        return self.storage.get(upload_key(self.tenant, sha256))

    def job(self, job_id: UUID) -> Job:
        return self.unit.jobs.hold(self.tenant, job_id)


TenantDep = Annotated[str, Depends(tenant)]
ManifestDep = Annotated[Manifest, Depends(manifest)]
SessionsDep = Annotated[Sessions, Depends(sessions)]
StorageDep = Annotated[Storage, Depends(storage)]
QueueDep = Annotated[Queue, Depends(queue)]
# scope="function": commit before the answer leaves, or a client could poll a job that is not there yet
UnitDep = Annotated[Unit, Depends(unit, scope="function")]
