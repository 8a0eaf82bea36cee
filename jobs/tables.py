"""The tables. A job's row is the truth about it; messages and objects follow it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Text,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs.states import JobState

DEFAULT_TENANT = "default"
DEFAULT_POOL = "default"
POOL_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,39}$"


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
    """An owner of jobs. Claims go round the tenants, the least recently served first."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    served_at: Mapped[datetime] = mapped_column(server_default=text("'epoch'"))
    max_running: Mapped[int | None]  # jobs at a time; None: as many as there are workers
    # quotas; None: as the settings say
    max_queued: Mapped[int | None]
    max_uploads: Mapped[int | None]
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_streams: Mapped[int | None]  # of events, for each key and API process
    requests_per_minute: Mapped[int | None]  # for each key
    submits_per_minute: Mapped[int | None]  # of them
    stored_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")  # uploads and artifacts, when last measured
    measured_at: Mapped[datetime | None]
    manual_until: Mapped[datetime | None]  # until when its tests and redeliveries of webhooks are used up, one for each second


class ApiKey(Base):
    """An API key. Only the hash of its secret is stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)  # the part that may be shown
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str]  # for people
    secret_sha256: Mapped[bytes]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))  # of Scope
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  # to the minute


class AuditLine(Base):
    """A line of the audit log: who did what that cannot be undone."""

    __tablename__ = "audit_lines"

    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp(), index=True)
    tenant: Mapped[str]  # no foreign key, because the line outlives its tenant
    actor: Mapped[str]  # the id of a key, or the operator's user name
    action: Mapped[str]  # job.cancel, job.delete, key.create, ...
    subject: Mapped[str]  # id of the object of the action

    __table_args__ = (Index("ix_audit_lines_tenant_seq", "tenant", "seq"),)


class Job(Base):
    """One requested edit."""

    __tablename__ = "jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True)  # random; in keys of the store, in foreign keys
    client_id: Mapped[UUID | None]  # the client's own id for the job, unique in its tenant
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)  # age
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    batch: Mapped[UUID | None]
    custom_id: Mapped[str | None]  # the client's name for a line of its batch
    model: Mapped[str]
    pool: Mapped[str] = mapped_column(server_default=DEFAULT_POOL)  # of the workers that have its model
    spec: Mapped[dict[str, Any]]  # a resolved JobSpec
    priority: Mapped[int]  # higher runs first
    start_before: Mapped[datetime | None]
    state: Mapped[JobState] = mapped_column(Text, server_default=JobState.QUEUED)
    attempt: Mapped[int] = mapped_column(server_default="0")  # the fencing token: it only grows
    failures: Mapped[int] = mapped_column(server_default="0")  # attempts that broke down or went silent; limited by max_attempts
    not_before: Mapped[datetime | None]  # after a failure no attempt begins until then
    passed_over: Mapped[int] = mapped_column(server_default="0")  # times that a younger job of a warm model went first
    together: Mapped[bool] = mapped_column(
        server_default=false()
    )  # whether its attempt shares the worker's process with other jobs
    alone: Mapped[bool] = mapped_column(
        server_default=false()
    )  # whether its attempts must run alone, because one that shared a process died
    worker: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]  # a request, not a state
    stop_requested_at: Mapped[datetime | None]  # a request to end the drag and keep the picture
    parent: Mapped[UUID | None] = mapped_column(
        ForeignKey("jobs.id", ondelete="SET NULL"), index=True
    )  # the job that it goes on from
    root: Mapped[UUID | None]  # the first job of its chain, which may be deleted
    parent_client_id: Mapped[UUID | None]  # of parent and root, which may be deleted
    root_client_id: Mapped[UUID | None]
    progress: Mapped[dict[str, Any] | None]
    # a ResumePoint, where the next attempt resumes; the column was named when "checkpoint" had two meanings
    resume_point: Mapped[dict[str, Any] | None] = mapped_column("checkpoint")
    stop_reason: Mapped[str | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]  # when row and objects may be deleted
    tidied_at: Mapped[datetime | None]  # when the objects were deleted that no result needs
    signed_at: Mapped[datetime | None]  # when the last signed copy was made or given up
    sign_tries: Mapped[int] = mapped_column(
        server_default="0"
    )  # to make signed copies; a try that failed for a store that is away does not count

    __table_args__ = (
        CheckConstraint("state IN ('" + "', '".join(JobState) + "')", name="state"),
        CheckConstraint("(state = 'running') = (lease_expires_at IS NOT NULL)", name="lease"),
        Index("ix_jobs_warm", "tenant", "model", text("priority DESC"), "seq", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_pool", "pool", "tenant", text("priority DESC"), "seq", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_running", "tenant", postgresql_where=text("state = 'running'")),
        Index("ix_jobs_lease", "lease_expires_at", postgresql_where=text("state = 'running'")),
        Index("ix_jobs_start_before", "start_before", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_tenant_seq", "tenant", "seq"),
        Index("ix_jobs_tenant_client_id", "tenant", "client_id", unique=True, postgresql_where=text("client_id IS NOT NULL")),
        Index("ix_jobs_batch", "batch", "seq", postgresql_where=text("batch IS NOT NULL")),
        Index("ix_jobs_succeeded", "model", "finished_at", postgresql_where=text("state = 'succeeded'")),
        Index("ix_jobs_untidy", "finished_at", postgresql_where=text("finished_at IS NOT NULL AND tidied_at IS NULL")),
        Index("ix_jobs_unsigned", "finished_at", postgresql_where=text("state = 'succeeded' AND signed_at IS NULL")),
        Index("ix_jobs_expires", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    )

    @property
    def public_id(self) -> UUID:
        """The id under which clients know the job."""
        return self.client_id or self.id

    @property
    def public_parent(self) -> UUID | None:
        """The id under which clients know the job that this one goes on from; None when that is gone."""
        return None if self.parent is None else self.parent_client_id or self.parent

    @property
    def public_root(self) -> UUID | None:
        """The id under which clients know the first job of the chain."""
        return self.root_client_id or self.root


class Artifact(Base):
    """A stored object of one attempt. A job shows the artifacts of its latest attempt."""

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
    reason: Mapped[str | None]  # why, where the ending does not say it


class IdempotencyKey(Base):
    """The key of a submission that a client may repeat without making a second job."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)  # the client's
    fingerprint: Mapped[str]  # sha256 of what was posted
    answer: Mapped[dict[str, Any] | None]  # the body of the first answer
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class Event(Base):
    """One change of a job. A trigger of the database writes the rows, in the order of the changes."""

    __tablename__ = "events"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)  # within one job it grows with time
    type: Mapped[str]  # an EventType
    data: Mapped[dict[str, Any]]  # state, attempt, and what is set of stop_reason, error_code, error_message
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Webhook(Base):
    """An address to which the events of a tenant's jobs are sent."""

    __tablename__ = "webhooks"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))  # of EventType
    every_job: Mapped[bool]  # or only the jobs that name it
    secrets: Mapped[list[str]] = mapped_column(ARRAY(Text))  # whsec_...; each of them signs, while they are rotated
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    failing_since: Mapped[datetime | None]
    answer_s: Mapped[float | None]  # how long an attempt takes on average, in seconds; None: none has ended yet
    disabled_at: Mapped[datetime | None]


class Delivery(Base):
    """One event on its way to one webhook. The trigger that writes the event adds the row."""

    __tablename__ = "deliveries"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    webhook: Mapped[UUID] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    job_id: Mapped[UUID]  # the public id; no foreign key, because the event is sent also when the job is gone
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default="pending")  # or delivered, failed
    tries: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    status: Mapped[int | None]  # HTTP, of the last try
    error: Mapped[str | None]  # of the last try
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    ended_at: Mapped[datetime | None] = mapped_column(index=True)

    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
        Index("ix_deliveries_pending", "webhook", "next_at", postgresql_where=text("state = 'pending'")),
        Index("ix_deliveries_webhook", "webhook", text("created_at DESC")),
    )


class Batch(Base):
    """A batch: many jobs that were sent together."""

    __tablename__ = "batches"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    lines: Mapped[int]  # of the JSONL that was sent
    refused: Mapped[int]  # lines that are no jobs
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    cancel_requested_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_batches_tenant_seq", "tenant", "seq"),)


class Refusal(Base):
    """A line of a batch that is no job, and why."""

    __tablename__ = "refusals"

    batch: Mapped[UUID] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)  # from 1
    custom_id: Mapped[str | None]
    problems: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)


class Worker(Base):
    """The last report of a worker process. Whether it lives is known by the lease of its job, never by a ping."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)  # host:pid of the process that computes
    pool: Mapped[str]
    models: Mapped[list[str]] = mapped_column(ARRAY(Text))  # in its memory
    job_id: Mapped[UUID | None]  # the job that it runs
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    seen_at: Mapped[datetime]  # when it last reported


class Upload(Base):
    """A photo, mask or latent of a tenant, checked and re-encoded, and named by its hash."""

    __tablename__ = "uploads"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)  # of the stored bytes, not of the bytes that were sent
    kind: Mapped[str]  # image, mask or latent
    width: Mapped[int]  # pixels; the numbers in a row of a latent
    height: Mapped[int]  # pixels; the rows of a latent
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    outline: Mapped[bytes | None] = mapped_column(LargeBinary)  # of a mask, a MaskOutline; None: from before there were outlines
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    used_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)  # by a submission, to the hour

    __table_args__ = (CheckConstraint("kind IN ('image', 'mask', 'latent')", name="kind"),)


class PresignedUpload(Base):
    """A file that a client announced and sends straight to the store. The row is deleted some time after its link expires."""

    __tablename__ = "presigned_uploads"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    sha256: Mapped[str]  # of the file
    size_bytes: Mapped[int] = mapped_column(BigInteger)  # of the file
    kind: Mapped[str | None]  # mask, or None: a photo or a latent
    upload: Mapped[str | None]  # sha256 of the upload that the file has become
    expires_at: Mapped[datetime] = mapped_column(index=True)  # when the link expires
