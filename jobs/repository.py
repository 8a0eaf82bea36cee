"""Every query on jobs and their artifacts. Never commits: who opened the session does.

All times are the database's, and every write of an attempt says which attempt it is.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Update, bindparam, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session
from sqlalchemy.types import Text

from jobs.errors import ArtifactNotFound, ErrorCode, JobNotFound, LeaseLost
from jobs.models import Artifact, Job, Tenant
from jobs.spec import JobSpec
from jobs.states import JobState, sources

# One statement: the least recently served tenant that has work, its highest priority, a warm model among equals, then
# age. Each arm reads one row of an index; only job rows are locked, so that claimers never wait for each other.
CLAIM = text("""
WITH pick AS MATERIALIZED (
    SELECT candidate.id, candidate.tenant
    FROM tenants CROSS JOIN LATERAL (
        SELECT arms.* FROM (
            SELECT * FROM (
                SELECT id, tenant, priority, seq, true AS warm FROM jobs
                WHERE tenant = tenants.id AND state = 'queued' AND model = ANY(:warm)
                    AND (start_before IS NULL OR start_before > now())
                ORDER BY priority DESC, seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS warm_arm
            UNION ALL
            SELECT * FROM (
                SELECT id, tenant, priority, seq, false AS warm FROM jobs
                WHERE tenant = tenants.id AND state = 'queued'
                    AND (start_before IS NULL OR start_before > now())
                ORDER BY priority DESC, seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS any_arm
        ) AS arms ORDER BY arms.priority DESC, arms.warm DESC, arms.seq LIMIT 1
    ) AS candidate
    ORDER BY tenants.served_at, tenants.id LIMIT 1
)
UPDATE jobs SET state = 'running', attempt = attempt + 1, worker = :worker, progress = NULL,
    lease_expires_at = clock_timestamp() + :lease, started_at = coalesce(started_at, clock_timestamp())
FROM pick WHERE jobs.id = pick.id AND jobs.state = 'queued'
RETURNING jobs.id
""").bindparams(bindparam("warm", type_=ARRAY(Text)))


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

    cancel: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended."""

    state: JobState
    stop_reason: str | None = None  # of a drag that succeeded
    error_code: ErrorCode | None = None  # of one that failed
    error_message: str | None = None


class JobRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, job_id: UUID, tenant: str, spec: JobSpec) -> Job:
        """Store a job, queued."""
        job = Job(
            id=job_id,
            tenant=tenant,
            model=spec.model,
            spec=spec.model_dump(mode="json"),
            priority=spec.priority,
            start_before=spec.start_before,
        )
        self.session.add(job)
        self.session.flush()
        self.session.refresh(job)
        return job

    def get(self, tenant: str, job_id: UUID) -> Job:
        """Raises JobNotFound, also for other tenants' jobs."""
        job = self.session.scalar(select(Job).where(Job.id == job_id, Job.tenant == tenant))
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

    def claim(self, worker: str, lease: timedelta, warm_models: Sequence[str] = ()) -> Job | None:
        """Start the job whose turn it is; None when nothing waits."""
        parameters = {"worker": worker, "lease": lease, "warm": list(warm_models)}
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
            values["progress"] = progress
        statement = self.of_attempt(job_id, attempt).values(values).returning(Job.cancel_requested_at)
        row = self.session.execute(statement).one_or_none()
        if row is None:
            raise LeaseLost(f"attempt {attempt} of job {job_id} does not hold the lease")
        return Wishes(cancel=row.cancel_requested_at is not None)

    def add_artifacts(self, job_id: UUID, attempt: int, objects: Sequence[StoredObject]) -> None:
        """Record uploaded objects. Raises LeaseLost."""
        self.held(job_id, attempt)
        rows = [{"job_id": job_id, "attempt": attempt, **vars(stored)} for stored in objects]
        self.session.execute(insert(Artifact).values(rows).on_conflict_do_nothing())

    def held(self, job_id: UUID, attempt: int) -> Job:
        """Lock the row of a job that this attempt runs. Raises LeaseLost."""
        query = select(Job).where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING).with_for_update()
        job = self.session.scalar(query)
        if job is None:
            raise LeaseLost(f"attempt {attempt} of job {job_id} does not hold the lease")
        return job

    def finish(self, job_id: UUID, attempt: int, outcome: Outcome) -> None:
        """End the job as this attempt found. Raises LeaseLost."""
        mine = (Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)
        if self.count(self.move(outcome.state, *mine).values(asdict(outcome))) == 0:
            raise LeaseLost(f"attempt {attempt} of job {job_id} does not hold the lease")

    def request_cancel(self, tenant: str, job_id: UUID) -> Job:
        """Cancel at once what waits; ask the worker to stop what runs; leave alone what has ended.

        Raises:
            JobNotFound: there is no such job.
        """
        mine = (Job.tenant == tenant, Job.id == job_id)
        self.session.execute(self.move(JobState.CANCELED, *mine, Job.state == JobState.QUEUED))
        wish = {"cancel_requested_at": func.coalesce(Job.cancel_requested_at, func.clock_timestamp())}
        self.session.execute(update(Job).where(*mine, Job.state == JobState.RUNNING).values(wish))
        return self.get(tenant, job_id)

    def requeue_expired_leases(self, max_attempts: int) -> tuple[int, int]:
        """Jobs whose worker has gone silent: (back to the queue, failed because that was the last attempt)."""
        silent = (Job.state == JobState.RUNNING, Job.lease_expires_at < func.clock_timestamp())
        message = f"{max_attempts} attempts ended without a word from their worker"
        exhausted = self.move(JobState.FAILED, *silent, Job.failures + 1 >= max_attempts)
        failed = self.count(
            exhausted.values(failures=Job.failures + 1, error_code=ErrorCode.ATTEMPTS_EXHAUSTED, error_message=message)
        )
        requeued = self.count(self.move(JobState.QUEUED, *silent).values(failures=Job.failures + 1))
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
    def of_attempt(job_id: UUID, attempt: int) -> Update:
        return update(Job).where(Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)

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
