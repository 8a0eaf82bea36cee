"""Every query on jobs and their artifacts. Never commits: who opened the session does.

All times are the database's, and every write of an attempt says which attempt it is.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Interval,
    Select,
    Update,
    bindparam,
    case,
    cast,
    func,
    null,
    select,
    tuple_,
    update,
)  # fmt: skip
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.orm import Session

from jobs.errors import ArtifactNotFound, ErrorCode, JobNotFound, LeaseLost
from jobs.queue.retry_policy import RetryPolicy
from jobs.spec.validation import Submission
from jobs.states import Ending, JobState, source_states
from jobs.tables import Artifact, Attempt, Job

MOST_DOUBLINGS = 30  # of the rest between two attempts: what follows would only overflow


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """What is known about an object once it lies in the store."""

    name: str
    key: str
    media_type: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where the next attempt goes on: what a job's row says about it."""

    attempt: int  # that saved it
    key: str  # of the object
    names: list[str]  # artifacts that need not be made again


@dataclass(frozen=True, kw_only=True)
class JobRequests:
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
class AttemptOutcome:
    """How an attempt ended."""

    state: JobState
    stop_reason: str | None = None  # of a drag that succeeded
    error_code: ErrorCode | None = None  # of one that failed
    error_message: str | None = None


def owned_by_attempt(job_id: UUID | BindParameter[UUID], attempt: int | BindParameter[int]) -> tuple[ColumnElement[bool], ...]:
    """The fence: the job, while this attempt runs it."""
    return Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING


def make_renewal() -> Update:
    """What `JobRepository.renew` runs; `told` is what has changed of the progress."""
    told = func.coalesce(Job.progress, cast({}, JSONB)).op("||")(bindparam("told", type_=JSONB))
    progress = func.nullif(func.jsonb_strip_nulls(told), cast({}, JSONB))
    return (
        update(Job)
        .where(*owned_by_attempt(bindparam("job"), bindparam("of_attempt")))
        .values(lease_expires_at=func.clock_timestamp() + bindparam("lease", type_=Interval), progress=progress)
        .returning(Job.cancel_requested_at.is_not(None).label("cancel"), Job.stop_requested_at.is_not(None).label("stop"))
    )


def make_record() -> Insert:
    """What `JobRepository.add_artifacts` runs for each object."""
    added = insert(Artifact)
    changed = {name: added.excluded[name] for name in ("key", "media_type", "size_bytes", "sha256")}
    return added.on_conflict_do_update(index_elements=["job_id", "attempt", "name"], set_=changed)


# Made once, and run by the connection itself: workers do so all the time, and what the session prepares takes longer than they.
RENEWAL, RECORD = make_renewal(), make_record()


def lease_lost(job_id: UUID, attempt: int) -> LeaseLost:
    return LeaseLost(f"attempt {attempt} of job {job_id} does not hold the lease")


def new_row(job_id: UUID, tenant: str, submission: Submission) -> dict[str, Any]:
    """The row of a job that is queued."""
    spec, parent = submission.spec, submission.parent
    return {
        "id": job_id,
        "tenant": tenant,
        "model": spec.model,
        "pool": submission.pool,
        "spec": spec.model_dump(mode="json"),
        "priority": spec.priority,
        "start_before": spec.start_before,
        "parent": None if parent is None else parent.id,
        "root": None if parent is None else parent.root or parent.id,
    }


def found(job: Job | None, job_id: UUID) -> Job:
    """Raises JobNotFound."""
    if job is None:
        raise JobNotFound(f"there is no job {job_id}")
    return job


JOBS = Job.__table__
# without the ORM: a submission costs half as much
ADD = JOBS.insert().returning(*(column for column in JOBS.columns if column.name != "spec"))  # type: ignore[attr-defined]


class JobRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, job_id: UUID, tenant: str, submission: Submission) -> Job:
        """Store a job, queued; what is returned is a copy that no session knows."""
        row = new_row(job_id, tenant, submission)
        stored = self.session.connection().execute(ADD, row).one()
        return Job(spec=row["spec"], **stored._asdict())

    def get(self, tenant: str, job_id: UUID, *, lock: bool = False) -> Job:
        """Raises JobNotFound, also for other tenants' jobs."""
        query = self.one(tenant, job_id)
        return found(self.session.scalar(query.with_for_update() if lock else query), job_id)

    def find(self, tenant: str, job_id: UUID) -> Job | None:
        return self.session.scalar(self.one(tenant, job_id))

    def take_id(self, job_id: UUID) -> bool:
        """Whether an id that a client chose is free; until the transaction ends nobody else can take it."""
        self.session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(job_id), 0))))
        return self.session.scalar(select(Job.id).where(Job.id == job_id)) is None

    def get_for_share(self, tenant: str, job_id: UUID) -> Job:
        """A job that nobody can delete until the transaction ends. Raises JobNotFound."""
        return found(self.session.scalar(self.one(tenant, job_id).with_for_update(read=True, key_share=True)), job_id)

    @staticmethod
    def one(tenant: str, job_id: UUID) -> Select[Job]:
        return select(Job).where(Job.id == job_id, Job.tenant == tenant)

    def page(
        self, tenant: str, *, limit: int, before: int | None = None, state: JobState | None = None, model: str | None = None,
        batch: UUID | None = None,
    ) -> list[Job]:  # fmt: skip
        """Jobs from the newest on, those with a seq below `before`."""
        query = select(Job).where(Job.tenant == tenant).order_by(Job.seq.desc()).limit(limit)
        wanted = ((Job.state, state), (Job.model, model), (Job.batch, batch))
        query = query.where(*(column == value for column, value in wanted if value is not None))
        return list(self.session.scalars(query if before is None else query.where(Job.seq < before)))

    def oldest_queued_s(self, tenant: str) -> float | None:
        """How long a tenant's first waiting job has waited, in seconds; None when none waits."""
        waited = func.extract("epoch", func.clock_timestamp() - func.min(Job.created_at))
        age = self.session.scalar(select(waited).where(Job.tenant == tenant, Job.state == JobState.QUEUED))
        return None if age is None else round(float(age), 3)

    def renew(self, job_id: UUID, attempt: int, lease: timedelta, progress: dict[str, Any] | None = None) -> JobRequests:
        """Hold the lease for another while and say how far the attempt is.

        Args:
            progress: what has changed of it; None takes a field away.

        Raises:
            LeaseLost: the job is another's, or has ended.
        """
        given = {"job": job_id, "of_attempt": attempt, "lease": lease, "told": progress or {}}
        row = self.session.connection().execute(RENEWAL, given).one_or_none()
        if row is None:
            raise lease_lost(job_id, attempt)
        return JobRequests(cancel=row.cancel, stop=row.stop)

    def add_artifacts(self, job_id: UUID, attempt: int, objects: Sequence[StoredObject]) -> None:
        """Record uploaded objects. Raises LeaseLost."""
        if self.session.scalar(select(Job.id).where(*owned_by_attempt(job_id, attempt)).with_for_update()) is None:
            raise lease_lost(job_id, attempt)
        rows = [{"job_id": job_id, "attempt": attempt, **vars(stored)} for stored in objects]
        self.session.connection().execute(RECORD, rows)

    def finish(self, job_id: UUID, attempt: int, outcome: AttemptOutcome) -> list[str]:
        """End the job as this attempt found; returns the key of its checkpoint, which nobody needs now. Raises LeaseLost."""
        key = self.session.scalar(
            select(Job.checkpoint["key"].as_string()).where(*owned_by_attempt(job_id, attempt)).with_for_update()
        )
        move = self.transition(outcome.state, *owned_by_attempt(job_id, attempt)).values(asdict(outcome))
        if self.end(move, Ending(outcome.state), outcome.error_message) == 0:
            raise lease_lost(job_id, attempt)
        return [] if key is None else [key]

    def release(self, job_id: UUID, attempt: int, reason: str, retries: RetryPolicy) -> None:
        """Give up an attempt that broke down: back to the queue, or failed when it was the last. Raises LeaseLost."""
        message = f"{retries.max_attempts} attempts failed, the last one by {reason}"
        if self.give_up(owned_by_attempt(job_id, attempt), message, retries, Ending.BROKE_DOWN, reason) == (0, 0):
            raise lease_lost(job_id, attempt)

    def hand_back(self, job_id: UUID, attempt: int) -> None:
        """Put a job back into the queue whose worker ends; no failure of the job's. Raises LeaseLost."""
        if self.end(self.transition(JobState.QUEUED, *owned_by_attempt(job_id, attempt)), Ending.HANDED_BACK) == 0:
            raise lease_lost(job_id, attempt)

    def save_resume_point(self, job_id: UUID, attempt: int, checkpoint: ResumePoint) -> None:
        """Say where the next attempt goes on. Raises LeaseLost."""
        statement = update(Job).where(*owned_by_attempt(job_id, attempt)).values(checkpoint=asdict(checkpoint))
        if self.session.execute(statement.returning(Job.id)).one_or_none() is None:
            raise lease_lost(job_id, attempt)

    def adopt(self, job_id: UUID, attempt: int, names: Collection[str], of_attempt: int) -> list[StoredObject]:
        """Make artifacts of an earlier attempt this one's, those of the given names that there are. Raises LeaseLost."""
        query = select(Artifact).where(Artifact.job_id == job_id, Artifact.attempt == of_attempt, Artifact.name.in_(names))
        kept = [
            StoredObject(name=row.name, key=row.key, media_type=row.media_type, size_bytes=row.size_bytes, sha256=row.sha256)
            for row in self.session.scalars(query.order_by(Artifact.name))
        ]
        if kept:
            self.add_artifacts(job_id, attempt, kept)
        return kept

    def request_cancel(self, tenant: str, job_id: UUID) -> Job:
        """Cancel at once what waits; ask the worker to stop what runs; leave alone what has ended.

        Raises:
            JobNotFound: there is no such job.
        """
        job = self.get(tenant, job_id, lock=True)
        if job.state == JobState.QUEUED:
            self.session.execute(self.transition(JobState.CANCELED, Job.id == job_id))
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

    def requeue_expired_leases(self, retries: RetryPolicy) -> tuple[int, int]:
        """Jobs whose worker has gone silent: (back to the queue, failed because that was the last attempt).

        Those that somebody wanted to cancel are canceled.
        """
        silent = (Job.state == JobState.RUNNING, Job.lease_expires_at < func.clock_timestamp())
        self.end(self.transition(JobState.CANCELED, *silent, Job.cancel_requested_at.is_not(None)), Ending.WENT_SILENT)
        message = f"{retries.max_attempts} attempts ended without a word from their worker"
        return self.give_up(silent, message, retries, Ending.WENT_SILENT)

    def give_up(
        self, which: Sequence[ColumnElement[bool]], message: str, retries: RetryPolicy, ending: Ending, reason: str | None = None
    ) -> tuple[int, int]:
        """Count a failure for running jobs: (back to the queue after a rest, failed with the message).

        An attempt that shared its process may have died of another's: it does not count, but the next ones run alone.
        """
        last = self.transition(JobState.FAILED, *which, ~Job.together, Job.failures + 1 >= retries.max_attempts)
        outcome = {"failures": Job.failures + 1, "error_code": ErrorCode.ATTEMPTS_EXHAUSTED, "error_message": message}
        failed = self.end(last.values(outcome), ending, reason)
        rest_s = func.least(retries.delay_limit_s, retries.delay_s * func.power(2, func.least(Job.failures, MOST_DOUBLINGS)))
        not_before = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, rest_s)
        counted = {"failures": Job.failures + case((Job.together, 0), else_=1), "alone": Job.alone | Job.together}
        again = self.transition(JobState.QUEUED, *which).values(**counted, not_before=not_before)
        return self.end(again, ending, reason), failed

    def expire(self) -> int:
        """End what should have started by now and did not; how many."""
        late = (Job.state == JobState.QUEUED, Job.started_at.is_(None), Job.start_before <= func.clock_timestamp())
        return len(self.session.execute(self.transition(JobState.EXPIRED, *late).returning(Job.id)).all())

    def artifacts(self, job: Job) -> list[Artifact]:
        """Artifacts of the job's latest attempt by name, without the frames: fewer than twenty."""
        query = self.artifacts_of(job).where(Artifact.name.not_like("frames/%"))
        return list(self.session.scalars(query.order_by(Artifact.name)))

    def attempts(self, job: Job) -> list[Attempt]:
        """From the first on."""
        return list(self.session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.attempt)))

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

    def photo_of(self, job: Job) -> str | None:
        """The upload that a job's chain began with, while its first job is kept."""
        root = job if job.root is None else self.session.get(Job, job.root)
        return None if root is None else root.spec["source"].get("upload")

    def frames(self, job: Job, *, after: str, limit: int) -> list[Artifact]:
        """Frames of the job's latest attempt by iteration, those whose name comes after `after`."""
        query = self.artifacts_of(job).where(Artifact.name.like("frames/%"), Artifact.name > after)
        return list(self.session.scalars(query.order_by(Artifact.name).limit(limit)))

    def latest_frame(self, job: Job) -> Artifact | None:
        query = self.artifacts_of(job).where(Artifact.name.like("frames/%"))
        return self.session.scalar(query.order_by(Artifact.name.desc()).limit(1))

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
    def transition(state: JobState, *where: ColumnElement[bool]) -> Update:
        """The only statement that changes a state, besides the claim: legal moves and nothing else."""
        values: dict[str, Any] = {"state": state, "lease_expires_at": None}
        if state.terminal:
            retained = func.make_interval(0, 0, 0, 0, 0, 0, Job.spec["retain_for_s"].as_integer())
            values |= {"checkpoint": null(), "not_before": null()}
            now = func.statement_timestamp()  # the same for both
            values |= {"finished_at": now, "expires_at": now + retained}
        return update(Job).where(Job.state.in_(source_states(state)), *where).values(values)

    def end(self, move: Update, ending: Ending, reason: str | None = None) -> int:
        """Move jobs, and close the attempts that ran them; how many."""
        ended = self.session.execute(move.returning(Job.id, Job.attempt)).all()
        if ended:
            attempts = update(Attempt).where(tuple_(Attempt.job_id, Attempt.attempt).in_(ended))
            self.session.execute(attempts.values(ended_at=func.clock_timestamp(), ending=ending, reason=reason))
        return len(ended)
