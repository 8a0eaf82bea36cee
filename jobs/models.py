"""The rows. A job's row is the truth about it; messages and objects follow."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, DateTime, ForeignKey, Identity, Index, MetaData, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs.states import JobState

DEFAULT_TENANT = "default"
DEFAULT_POOL = "default"


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {datetime: DateTime(timezone=True), str: Text, dict[str, Any]: JSONB}


class Tenant(Base):
    """Who submits. Claims go round the tenants, the least recently served first."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    served_at: Mapped[datetime] = mapped_column(server_default=text("'epoch'"))
    max_running: Mapped[int | None]  # jobs at a time; None: as many as there are workers


class Job(Base):
    """One requested edit."""

    __tablename__ = "jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)  # age; ids may be the client's
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    batch: Mapped[UUID | None]
    model: Mapped[str]
    pool: Mapped[str] = mapped_column(server_default=DEFAULT_POOL)  # the workers that have its model
    spec: Mapped[dict[str, Any]]  # a resolved JobSpec
    priority: Mapped[int]  # higher runs first
    start_before: Mapped[datetime | None]
    state: Mapped[JobState] = mapped_column(Text, server_default=JobState.QUEUED)
    attempt: Mapped[int] = mapped_column(server_default="0")  # the fencing token: it only grows
    failures: Mapped[int] = mapped_column(server_default="0")  # attempts that died; what max_attempts limits
    not_before: Mapped[datetime | None]  # rests until then, after a failure
    passed_over: Mapped[int] = mapped_column(server_default="0")  # times that a younger job of a warm model went first
    worker: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]  # a wish, not a state
    stop_requested_at: Mapped[datetime | None]  # another: end the drag, keep the picture
    parent: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)  # went on from
    root: Mapped[UUID | None]  # where its chain began; may be gone
    progress: Mapped[dict[str, Any] | None]
    checkpoint: Mapped[dict[str, Any] | None]  # a Checkpoint: where the next attempt goes on
    stop_reason: Mapped[str | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]  # when row and objects may be deleted
    tidied_at: Mapped[datetime | None]  # when what no result needs was deleted

    __table_args__ = (
        CheckConstraint("state IN ('" + "', '".join(JobState) + "')", name="state"),
        CheckConstraint("(state = 'running') = (lease_expires_at IS NOT NULL)", name="lease"),
        Index("ix_jobs_warm", "tenant", "model", text("priority DESC"), "seq", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_pool", "pool", "tenant", text("priority DESC"), "seq", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_running", "tenant", postgresql_where=text("state = 'running'")),
        Index("ix_jobs_lease", "lease_expires_at", postgresql_where=text("state = 'running'")),
        Index("ix_jobs_start_before", "start_before", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_tenant_seq", "tenant", "seq"),
        Index("ix_jobs_untidy", "finished_at", postgresql_where=text("finished_at IS NOT NULL AND tidied_at IS NULL")),
        Index("ix_jobs_expires", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    )


class Artifact(Base):
    """One stored object of one attempt; a job shows those of its latest."""

    __tablename__ = "artifacts"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)  # result.png, frames/00012.webp
    key: Mapped[str]
    media_type: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Attempt(Base):
    """One run of a job by one worker, and how it ended."""

    __tablename__ = "attempts"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str]
    began_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    ended_at: Mapped[datetime | None]
    ending: Mapped[str | None]  # an Ending
    reason: Mapped[str | None]  # why, where that is not plain


class IdempotencyKey(Base):
    """A submission that a client may repeat without making a second job."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)  # the client's
    fingerprint: Mapped[str]  # sha256 of what was posted
    answer: Mapped[dict[str, Any] | None]  # the body that was answered
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class Worker(Base):
    """A worker process, as it last said; whether it lives is known by the lease of its job, never by a ping."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)  # host:pid of the process that computes
    pool: Mapped[str]
    models: Mapped[list[str]] = mapped_column(ARRAY(Text))  # in its memory
    job_id: Mapped[UUID | None]  # that it runs; how far it is stands in the job's progress
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    seen_at: Mapped[datetime]  # when it last said something


class Upload(Base):
    """A photo, mask or latent that a tenant sent, checked and re-encoded; named by its content."""

    __tablename__ = "uploads"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)  # of what is stored, not of what was sent
    kind: Mapped[str]  # image, mask or latent
    width: Mapped[int]  # pixels; of a latent the numbers in a row
    height: Mapped[int]  # pixels; of a latent its rows
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint("kind IN ('image', 'mask', 'latent')", name="kind"),)
