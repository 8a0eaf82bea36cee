"""Every query on jobs and their artifacts. Never commits: who opened the session does.

All times are the database's, and every write of an attempt says which attempt it is.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Update, bindparam, cast, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session
from sqlalchemy.types import Text

from jobs.errors import ArtifactNotFound, ErrorCode, JobNotFound, LeaseLost
from jobs.models import Artifact, Job, Tenant
from jobs.spec import JobSpec
from jobs.states import JobState, sources

# One statement: the least recently served tenant that has work, its highest priority, the warm model among equals, then
# age. OFFSET 0 makes Postgres sort the tenants first, so that it stops at the first one with work and locks no other's
# jobs; each arm reads one row of an index. Tenants are never locked: claimers do not wait for each other.
CLAIM = text("""
WITH pick AS MATERIALIZED (
    SELECT candidate.id
    FROM (SELECT id FROM tenants ORDER BY served_at, id OFFSET 0) AS turn
    CROSS JOIN LATERAL (
        SELECT arms.* FROM (
            SELECT * FROM (
                SELECT id, priority, seq, true AS warm FROM jobs
                WHERE tenant = turn.id AND state = 'queued' AND model = :warm
                    AND (start_before IS NULL OR start_before > now())
                ORDER BY priority DESC, seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS warm_arm
            UNION ALL
            SELECT * FROM (
                SELECT id, priority, seq, false AS warm FROM jobs
                WHERE tenant = turn.id AND state = 'queued'
                    AND (start_before IS NULL OR start_before > now())
                ORDER BY priority DESC, seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS any_arm
        ) AS arms ORDER BY arms.priority DESC, arms.warm DESC, arms.seq LIMIT 1
    ) AS candidate
    LIMIT 1
)
UPDATE jobs SET state = 'running', attempt = attempt + 1, worker = :worker, progress = NULL,
    lease_expires_at = clock_timestamp() + :lease, started_at = coalesce(started_at, clock_timestamp())
FROM pick WHERE jobs.id = pick.id AND jobs.state = 'queued'
RETURNING jobs.id
""").bindparams(bindparam("warm", type_=Text))


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """What is known about an object once it lies in the store."""

    name: str
    key: str
    media_type: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What clients have asked of a running job."""

    cancel: bool = False
    stop: bool = False


@dataclass(frozen=True, kw_only=True)
class Ancestry:
    """Where the results lie that a job goes on from."""

    latent_key: str
    changes_key: str | None  # of a tuned generator's tensors, where the chain began with a photo
    root_spec: dict[str, Any] | None  # of the chain's first job, while it is kept


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended."""

    state: JobState
    stop_reason: str | None = None  # of a drag that succeeded
    error_code: ErrorCode | None = None  # of one that failed
    error_message: str | None = None


def mine(job_id: UUID, attempt: int) -> tuple[ColumnElement[bool], ...]:
    """The fence: the job, while this attempt runs it."""
    return Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING


def lease_lost(job_id: UUID, attempt: int) -> LeaseLost:
    return LeaseLost(f"attempt {attempt} of job {job_id} does not hold the lease")


class JobRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, job_id: UUID, tenant: str, spec: JobSpec, parent: Job | None = None) -> Job:
        """Store a job, queued; parent is the one whose result it goes on from."""
        job = Job(
            id=job_id,
            tenant=tenant,
            model=spec.model,
            spec=spec.model_dump(mode="json"),
            priority=spec.priority,
            start_before=spec.start_before,
            parent=None if parent is None else parent.id,
            root=None if parent is None else parent.root or parent.id,
        )
        self.session.add(job)
        self.session.flush()
        self.session.refresh(job)
        return job

    def get(self, tenant: str, job_id: UUID, *, lock: bool = False) -> Job:
        """Raises JobNotFound, also for other tenants' jobs."""
        query = select(Job).where(Job.id == job_id, Job.tenant == tenant)
        job = self.session.scalar(query.with_for_update() if lock else query)
        if job is None:
            raise JobNotFound(f"there is no job {job_id}")
        return job

    def page(
        self, tenant: str, *, limit: int, before: int | None = None, state: JobState | None = None, model: str | None = None,
        batch: UUID | None = None,
    ) -> list[Job]:  # fmt: skip
        """Jobs from the newest on, those with a seq below `before`."""
        query = select(Job).where(Job.tenant == tenant).order_by(Job.seq.desc()).limit(limit)
        wanted = ((Job.state, state), (Job.model, model), (Job.batch, batch))
        query = query.where(*(column == value for column, value in wanted if value is not None))
        return list(self.session.scalars(query if before is None else query.where(Job.seq < before)))

    def claim(self, worker: str, lease: timedelta, warm_model: str | None = None) -> Job | None:
        """Start the job whose turn it is; None when nothing waits, or what waits is just being claimed."""
        parameters = {"worker": worker, "lease": lease, "warm": warm_model}
        job_id = self.session.scalar(CLAIM, parameters)
        if job_id is None:
            return None
        job = self.session.get_one(Job, job_id, populate_existing=True)
        self.session.execute(update(Tenant).where(Tenant.id == job.tenant).values(served_at=func.clock_timestamp()))
        return job

    def renew(self, job_id: UUID, attempt: int, lease: timedelta, progress: dict[str, Any] | None = None) -> Wishes:
        """Hold the lease for another while and say how far the attempt is.

        Raises:
            LeaseLost: the job is another's, or has ended.
        """
        values: dict[str, Any] = {"lease_expires_at": func.clock_timestamp() + lease}
        if progress is not None:
            values["progress"] = func.coalesce(Job.progress, cast({}, JSONB)).op("||")(cast(progress, JSONB))
        statement = (
            update(Job)
            .where(*mine(job_id, attempt))
            .values(values)
            .returning(Job.cancel_requested_at.is_not(None).label("cancel"), Job.stop_requested_at.is_not(None).label("stop"))
        )
        row = self.session.execute(statement).one_or_none()
        if row is None:
            raise lease_lost(job_id, attempt)
        return Wishes(cancel=row.cancel, stop=row.stop)

    def add_artifacts(self, job_id: UUID, attempt: int, objects: Sequence[StoredObject]) -> None:
        """Record uploaded objects. Raises LeaseLost."""
        if self.session.scalar(select(Job.id).where(*mine(job_id, attempt)).with_for_update()) is None:
            raise lease_lost(job_id, attempt)
        rows = [{"job_id": job_id, "attempt": attempt, **vars(stored)} for stored in objects]
        self.session.execute(insert(Artifact).values(rows).on_conflict_do_nothing())

    def finish(self, job_id: UUID, attempt: int, outcome: Outcome) -> None:
        """End the job as this attempt found. Raises LeaseLost."""
        if self.count(self.move(outcome.state, *mine(job_id, attempt)).values(asdict(outcome))) == 0:
            raise lease_lost(job_id, attempt)

    def release(self, job_id: UUID, attempt: int, reason: str, max_attempts: int) -> None:
        """Give up an attempt that broke down: back to the queue, or failed when it was the last. Raises LeaseLost."""
        if self.give_up(mine(job_id, attempt), f"{max_attempts} attempts failed, the last one by {reason}", max_attempts) == (
            0,
            0,
        ):
            raise lease_lost(job_id, attempt)

    def hand_back(self, job_id: UUID, attempt: int) -> None:
        """Put a job back into the queue whose worker ends; no failure of the job's. Raises LeaseLost."""
        if self.count(self.move(JobState.QUEUED, *mine(job_id, attempt))) == 0:
            raise lease_lost(job_id, attempt)

    def request_cancel(self, tenant: str, job_id: UUID) -> Job:
        """Cancel at once what waits; ask the worker to stop what runs; leave alone what has ended.

        Raises:
            JobNotFound: there is no such job.
        """
        job = self.get(tenant, job_id, lock=True)
        if job.state == JobState.QUEUED:
            self.session.execute(self.move(JobState.CANCELED, Job.id == job_id))
        elif job.state == JobState.RUNNING and job.cancel_requested_at is None:
            self.session.execute(update(Job).where(Job.id == job_id).values(cancel_requested_at=func.clock_timestamp()))
        self.session.refresh(job)
        return job

    def request_stop(self, tenant: str, job_id: UUID) -> Job:
        """Ask the worker to end the drag and keep the picture; what still waits will end at its first step.

        Raises:
            JobNotFound: there is no such job.
        """
        job = self.get(tenant, job_id, lock=True)
        if job.state in (JobState.QUEUED, JobState.RUNNING) and job.stop_requested_at is None:
            self.session.execute(update(Job).where(Job.id == job_id).values(stop_requested_at=func.clock_timestamp()))
        self.session.refresh(job)
        return job

    def requeue_expired_leases(self, max_attempts: int) -> tuple[int, int]:
        """Jobs whose worker has gone silent: (back to the queue, failed because that was the last attempt).

        Those that somebody wanted to cancel are canceled.
        """
        silent = (Job.state == JobState.RUNNING, Job.lease_expires_at < func.clock_timestamp())
        self.session.execute(self.move(JobState.CANCELED, *silent, Job.cancel_requested_at.is_not(None)))
        return self.give_up(silent, f"{max_attempts} attempts ended without a word from their worker", max_attempts)

    def give_up(self, which: Sequence[ColumnElement[bool]], message: str, max_attempts: int) -> tuple[int, int]:
        """Count a failure for running jobs: (back to the queue, failed with the message)."""
        last = self.move(JobState.FAILED, *which, Job.failures + 1 >= max_attempts)
        outcome = {"failures": Job.failures + 1, "error_code": ErrorCode.ATTEMPTS_EXHAUSTED, "error_message": message}
        failed = self.count(last.values(outcome))
        requeued = self.count(self.move(JobState.QUEUED, *which).values(failures=Job.failures + 1))
        return requeued, failed

    def expire(self) -> int:
        """End what should have started by now and did not; how many."""
        return self.count(self.move(JobState.EXPIRED, Job.state == JobState.QUEUED, Job.start_before <= func.clock_timestamp()))

    def queued(self, limit: int) -> int:
        """How many jobs wait, counted up to limit."""
        waiting = select(Job.id).where(Job.state == JobState.QUEUED).limit(limit).subquery()
        return self.session.scalar(select(func.count()).select_from(waiting)) or 0

    def artifacts(self, job: Job) -> list[Artifact]:
        """Artifacts of the job's latest attempt by name, without the frames: a dozen at most."""
        query = self.artifacts_of(job).where(Artifact.name.not_like("frames/%"))
        return list(self.session.scalars(query.order_by(Artifact.name)))

    def ancestry(self, job: Job) -> "Ancestry":
        """What a job that goes on from another builds on. Raises ArtifactNotFound, JobNotFound."""
        if job.parent is None:
            raise JobNotFound("the job to go on from is gone")
        parent = self.get(job.tenant, job.parent)
        latent = self.artifact(parent, "latent.safetensors")
        changes = self.session.scalar(self.artifacts_of(parent).where(Artifact.name == "generator.safetensors"))
        root = self.session.get(Job, job.root)
        return Ancestry(
            latent_key=latent.key,
            changes_key=None if changes is None else changes.key,
            root_spec=None if root is None else root.spec,
        )

    def frames(self, job: Job, *, after: str, limit: int) -> list[Artifact]:
        """Frames of the job's latest attempt by iteration, those whose name comes after `after`."""
        query = self.artifacts_of(job).where(Artifact.name.like("frames/%"), Artifact.name > after)
        return list(self.session.scalars(query.order_by(Artifact.name).limit(limit)))

    def artifact(self, job: Job, name: str) -> Artifact:
        """Raises ArtifactNotFound."""
        artifact = self.session.scalar(self.artifacts_of(job).where(Artifact.name == name))
        if artifact is None:
            raise ArtifactNotFound(f"job {job.id} has no artifact {name[:100]!r}")
        return artifact

    @staticmethod
    def artifacts_of(job: Job) -> Select[Artifact]:
        return select(Artifact).where(tuple_(Artifact.job_id, Artifact.attempt) == (job.id, job.attempt))

    @staticmethod
    def move(state: JobState, *where: ColumnElement[bool]) -> Update:
        """The only statement that changes a state, besides the claim: legal moves and nothing else."""
        values: dict[str, Any] = {"state": state, "lease_expires_at": None}
        if state.terminal:
            retained = func.make_interval(0, 0, 0, 0, 0, 0, Job.spec["retain_for_s"].as_integer())
            values |= {"finished_at": func.clock_timestamp(), "expires_at": func.clock_timestamp() + retained}
        return update(Job).where(Job.state.in_(sources(state)), *where).values(values)

    def count(self, statement: Update) -> int:
        return len(self.session.execute(statement.returning(Job.id)).all())
