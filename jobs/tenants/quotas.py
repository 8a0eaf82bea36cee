"""How much a tenant may have at a time, and how much it has."""

import time
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from jobs.errors import QuotaExceeded
from jobs.states import JobState
from jobs.tables import Artifact, Job, PresignedUpload, Tenant, Upload

TRUSTED_S = 1.0  # a count of queued jobs
UNLIMITED = 2**31
MEASURED_EVERY = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """What a tenant may have; None: as much as it likes."""

    max_queued: int | None  # jobs that wait
    max_uploads: int | None
    max_stored_bytes: int | None  # uploads and artifacts

    def of(self, tenant: Tenant) -> "Quotas":
        """These, where the tenant has none of its own."""
        own = {name: getattr(tenant, name) for name in vars(self)}
        return Quotas(**{name: value if own[name] is None else own[name] for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a tenant has now."""

    queued: int
    running: int
    uploads: int
    stored_bytes: int  # when it was last measured


class QueueQuota:
    """Whether tenants may queue more jobs. One that is far from its limit is not counted again for a second."""

    def __init__(self, defaults: Quotas) -> None:
        self.defaults = defaults
        self.counted: dict[str, tuple[float, int]] = {}  # when, and how many more may come before it is counted again

    def take(self, session: Session, tenant: str, more: int = 1) -> None:
        """Raises QuotaExceeded when so many more jobs may not be queued."""
        at, spare = self.counted.get(tenant, (0.0, 0))
        if time.monotonic() - at > TRUSTED_S or spare < more:
            at, spare = time.monotonic(), self.count(session, tenant, more)
        self.counted[tenant] = at, spare - more

    def count(self, session: Session, tenant: str, more: int) -> int:
        """Half of what may still come: other processes take from it too. Raises QuotaExceeded."""
        queued = select(func.count()).where(Job.tenant == tenant, Job.state == JobState.QUEUED).scalar_subquery()
        row, waiting = session.execute(select(Tenant, queued).where(Tenant.id == tenant)).one()
        quotas = self.defaults.of(row)
        check_stored(row, quotas)
        if quotas.max_queued is None:
            return UNLIMITED
        if waiting + more > quotas.max_queued:
            raise QuotaExceeded(f"may have {quotas.max_queued} jobs queued, has {waiting}")
        return (quotas.max_queued - int(waiting)) // 2


def check_room_for_upload(session: Session, tenant: str, sha256: str, quotas: Quotas) -> None:
    """Raises QuotaExceeded when the tenant may not keep another upload; one that is kept already is none."""
    if session.get(Upload, (tenant, sha256)) is not None:
        return
    row = session.get_one(Tenant, tenant)
    quotas = quotas.of(row)
    check_stored(row, quotas)
    check_uploads(session, tenant, quotas)


def check_room_to_announce(session: Session, tenant: str, size_bytes: int, quotas: Quotas) -> None:
    """Raises QuotaExceeded when the tenant may not send a file of that size, besides those it has announced already."""
    open_ = (PresignedUpload.tenant == tenant, PresignedUpload.upload.is_(None))
    files, size = session.execute(select(func.count(), func.sum(PresignedUpload.size_bytes)).where(*open_)).one()
    row = session.get_one(Tenant, tenant)
    quotas = quotas.of(row)
    check_stored(row, quotas, int(size or 0) + size_bytes)
    check_uploads(session, tenant, quotas, files)


def check_uploads(session: Session, tenant: str, quotas: Quotas, announced: int = 0) -> None:
    if quotas.max_uploads is None:
        return
    kept = session.scalar(select(func.count()).where(Upload.tenant == tenant)) or 0
    if kept + announced >= quotas.max_uploads:
        also = f" and has announced {announced}" if announced else ""
        raise QuotaExceeded(f"may keep {quotas.max_uploads} uploads, keeps {kept}{also}: delete some")


def check_stored(tenant: Tenant, quotas: Quotas, more: int = 1) -> None:
    """Raises QuotaExceeded when there is no room for so many bytes more."""
    if quotas.max_stored_bytes is not None and tenant.stored_bytes + more > quotas.max_stored_bytes:
        raise QuotaExceeded(f"may store {quotas.max_stored_bytes} bytes, stores {tenant.stored_bytes}: delete jobs or uploads")


def usage(session: Session, tenant: str) -> Usage:
    def count(state: JobState) -> int:  # one state at a time: each has an index of its own
        return session.scalar(select(func.count()).where(Job.tenant == tenant, Job.state == state)) or 0

    uploads = session.scalar(select(func.count()).where(Upload.tenant == tenant)) or 0
    stored = session.get_one(Tenant, tenant).stored_bytes
    return Usage(queued=count(JobState.QUEUED), running=count(JobState.RUNNING), uploads=uploads, stored_bytes=stored)


def due(session: Session, limit: int) -> list[str]:
    """Tenants that were not measured for a while."""
    long_ago = or_(Tenant.measured_at.is_(None), Tenant.measured_at < func.now() - MEASURED_EVERY)
    return list(session.scalars(select(Tenant.id).where(long_ago).order_by(Tenant.measured_at.nulls_first()).limit(limit)))


def measure(session: Session, tenant: str) -> None:
    """Sum up what a tenant stores; its row is locked only to write that down."""
    uploads = session.scalar(select(func.sum(Upload.size_bytes)).where(Upload.tenant == tenant)) or 0
    artifacts = select(func.sum(Artifact.size_bytes)).join(Job, Artifact.job_id == Job.id).where(Job.tenant == tenant)
    stored = uploads + (session.scalar(artifacts) or 0)
    session.execute(update(Tenant).where(Tenant.id == tenant).values(stored_bytes=stored, measured_at=func.now()))
