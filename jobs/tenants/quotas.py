"""Quotas: how much a tenant may have at a time, and how much it has."""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from sqlalchemy import func, or_, select, text, update
from sqlalchemy.orm import Session

from jobs.errors import QuotaExceeded
from jobs.settings import Settings
from jobs.states import JobState
from jobs.tables import Artifact, Job, PresignedUpload, Tenant, Upload

COUNT_VALID_S = 1.0  # how long a count of queued jobs is used
FAR = 10_000  # remaining jobs of a quota, from which on not every submission is counted; more than a second can bring
UNCOUNTED_PART = 64  # one in so many of the remaining jobs is let in by a process without a count
MAX_UNCOUNTED = 500  # jobs that a process lets in after one count
UNLIMITED = 2**31
LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('queue quota ' || :tenant, 0))")
MEASURE_INTERVAL = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """The limits of a tenant; None means no limit."""

    max_queued: int | None  # jobs that wait
    max_uploads: int | None
    max_stored_bytes: int | None  # uploads and artifacts

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the limits of tenants without limits of their own."""
        return cls(**{name: getattr(settings, name) for name in ("max_queued", "max_uploads", "max_stored_bytes")})

    def for_tenant(self, tenant: Tenant) -> "Quotas":
        """Return a tenant's own limits, and these defaults where it has none."""
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
    """The limit on queued jobs. It is exact, however many requests of a tenant are answered at once.

    A transaction that counts holds the tenant's lock until its end, so that no two see the same last place. Far from the limit a
    process counts once a second, and lets a small part of what remains in without a count. A batch that fills the rest waits for
    that part.
    """

    def __init__(self, defaults: Quotas) -> None:
        self.defaults = defaults
        self.uncounted: dict[str, tuple[float, int]] = {}  # by tenant: until when, and how many jobs still need no count
        self.changed = threading.Lock()  # guards uncounted

    def reserve(self, session: Session, tenant: str) -> None:
        """Raise QuotaExceeded when the tenant may not queue one more job."""
        if self.take_uncounted(tenant):
            return
        lock(session, tenant)
        if self.take_uncounted(tenant):  # another request has counted while this one waited
            return
        spare = self.check(session, tenant, more=1)
        if spare >= FAR:
            with self.changed:
                self.uncounted[tenant] = time.monotonic() + COUNT_VALID_S, min(spare // UNCOUNTED_PART, MAX_UNCOUNTED)

    def take_uncounted(self, tenant: str) -> bool:
        """Return whether one more job needs no count."""
        with self.changed:
            until, left = self.uncounted.get(tenant, (0.0, 0))
            if left == 0 or time.monotonic() > until:
                self.uncounted.pop(tenant, None)
                return False
            self.uncounted[tenant] = until, left - 1
            return True

    def check_exactly(self, session: Session, tenant: str, added: int) -> None:
        """Raise QuotaExceeded when the tenant has more jobs queued than it may, with those that this transaction has added.

        Where they take the tenant near its limit, the jobs that were let in without a count are waited for: no process lets in
        others while this one holds the lock.
        """
        lock(session, tenant)
        spare = self.check(session, tenant, more=0)
        if spare < FAR <= spare + added:
            time.sleep(COUNT_VALID_S)
            self.check(session, tenant, more=0)

    def check(self, session: Session, tenant: str, more: int) -> int:
        """Count the tenant's queued jobs, and raise QuotaExceeded when it may not queue so many more.

        Returns:
            The remaining quota.
        """
        queued = select(func.count()).where(Job.tenant == tenant, Job.state == JobState.QUEUED).scalar_subquery()
        row, waiting = session.execute(select(Tenant, queued).where(Tenant.id == tenant)).one()
        quotas = self.defaults.for_tenant(row)
        check_stored_bytes(row, quotas)
        if quotas.max_queued is None:
            return UNLIMITED
        if waiting + more > quotas.max_queued:
            raise QuotaExceeded(f"may have {quotas.max_queued} jobs queued, has {waiting}")
        return quotas.max_queued - int(waiting)


def lock(session: Session, tenant: str) -> None:
    """Keep others from counting the tenant's queued jobs until this transaction ends."""
    session.connection().execute(LOCK, {"tenant": tenant})


def check_upload_quota(session: Session, tenant: str, sha256: str, quotas: Quotas) -> None:
    """Raise QuotaExceeded when the tenant may not keep another upload. An upload that it has already is always allowed."""
    if session.get(Upload, (tenant, sha256)) is not None:
        return
    row = session.get_one(Tenant, tenant)
    quotas = quotas.for_tenant(row)
    check_stored_bytes(row, quotas)
    check_upload_count(session, tenant, quotas)


def check_announced_upload_quota(session: Session, tenant: str, size_bytes: int, quotas: Quotas) -> None:
    """Raise QuotaExceeded when the tenant may not send a file of that size besides those that it has announced."""
    open_ = (PresignedUpload.tenant == tenant, PresignedUpload.upload.is_(None))
    files, size = session.execute(select(func.count(), func.sum(PresignedUpload.size_bytes)).where(*open_)).one()
    row = session.get_one(Tenant, tenant)
    quotas = quotas.for_tenant(row)
    check_stored_bytes(row, quotas, int(size or 0) + size_bytes)
    check_upload_count(session, tenant, quotas, files)


def check_upload_count(session: Session, tenant: str, quotas: Quotas, announced: int = 0) -> None:
    """Raise QuotaExceeded when the tenant may not keep one more upload."""
    if quotas.max_uploads is None:
        return
    kept = session.scalar(select(func.count()).where(Upload.tenant == tenant)) or 0
    if kept + announced >= quotas.max_uploads:
        also = f" and has announced {announced}" if announced else ""
        raise QuotaExceeded(f"may keep {quotas.max_uploads} uploads, keeps {kept}{also}: delete some")


def check_stored_bytes(tenant: Tenant, quotas: Quotas, more: int = 1) -> None:
    """Raise QuotaExceeded when the tenant may not store so many more bytes."""
    if quotas.max_stored_bytes is not None and tenant.stored_bytes + more > quotas.max_stored_bytes:
        raise QuotaExceeded(f"may store {quotas.max_stored_bytes} bytes, stores {tenant.stored_bytes}: delete jobs or uploads")


def get_usage(session: Session, tenant: str) -> Usage:
    """Return what a tenant has now."""

    def count(state: JobState) -> int:  # one query a state, because each state has its own index
        return session.scalar(select(func.count()).where(Job.tenant == tenant, Job.state == state)) or 0

    uploads = session.scalar(select(func.count()).where(Upload.tenant == tenant)) or 0
    stored = session.get_one(Tenant, tenant).stored_bytes
    return Usage(queued=count(JobState.QUEUED), running=count(JobState.RUNNING), uploads=uploads, stored_bytes=stored)


def list_unmeasured(session: Session, limit: int) -> list[str]:
    """List tenants whose stored bytes were not measured for a while."""
    long_ago = or_(Tenant.measured_at.is_(None), Tenant.measured_at < func.now() - MEASURE_INTERVAL)
    return list(session.scalars(select(Tenant.id).where(long_ago).order_by(Tenant.measured_at.nulls_first()).limit(limit)))


def measure_stored_bytes(session: Session, tenant: str) -> None:
    """Sum up the bytes that a tenant stores. Its row is locked only while the sum is written."""
    uploads = session.scalar(select(func.sum(Upload.size_bytes)).where(Upload.tenant == tenant)) or 0
    artifacts = select(func.sum(Artifact.size_bytes)).join(Job, Artifact.job_id == Job.id).where(Job.tenant == tenant)
    stored = uploads + (session.scalar(artifacts) or 0)
    session.execute(update(Tenant).where(Tenant.id == tenant).values(stored_bytes=stored, measured_at=func.now()))
