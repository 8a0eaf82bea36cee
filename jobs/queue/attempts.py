"""What the attempts of a job write: leases, progress, artifacts, outcomes. Nothing here commits.

All times are the database's, and every write names its attempt: the row is changed only while that attempt runs the job.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement, Interval, Update, bindparam, case, cast, func, select, update
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.orm import Session

from jobs.errors import ErrorCode, LeaseLost
from jobs.queue.retry_policy import RetryPolicy
from jobs.queue.state_updates import end_attempts, transition
from jobs.states import Ending, JobState
from jobs.storage.artifacts import StoredObject
from jobs.tables import Artifact, Job


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """The saved resume state of a job, where its next attempt goes on."""

    attempt: int  # that saved it
    key: str  # of the object
    names: list[str]  # artifacts that need not be made again


@dataclass(frozen=True, kw_only=True)
class JobRequests:
    """What clients have asked of a running job."""

    cancel: bool = False
    stop: bool = False


@dataclass(frozen=True, kw_only=True)
class AttemptOutcome:
    """How an attempt ended."""

    state: JobState
    stop_reason: str | None = None  # of a drag that succeeded
    error_code: ErrorCode | None = None  # of one that failed
    error_message: str | None = None


def owned_by_attempt(job_id: UUID | BindParameter[UUID], attempt: int | BindParameter[int]) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of the job while this attempt runs it: the fence of every write."""
    return Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING


def make_renewal() -> Update:
    """Build the statement of `renew`; its parameter `changes` holds the changed fields of the progress."""
    merged = func.coalesce(Job.progress, cast({}, JSONB)).op("||")(bindparam("changes", type_=JSONB))
    progress = func.nullif(func.jsonb_strip_nulls(merged), cast({}, JSONB))
    return (
        update(Job)
        .where(*owned_by_attempt(bindparam("job"), bindparam("of_attempt")))
        .values(lease_expires_at=func.clock_timestamp() + bindparam("lease", type_=Interval), progress=progress)
        .returning(Job.cancel_requested_at.is_not(None).label("cancel"), Job.stop_requested_at.is_not(None).label("stop"))
    )


def make_record() -> Insert:
    """Build the statement of `add_artifacts` for one object."""
    added = insert(Artifact)
    changed = {name: added.excluded[name] for name in ("key", "media_type", "size_bytes", "sha256")}
    return added.on_conflict_do_update(index_elements=["job_id", "attempt", "name"], set_=changed)


# Built once and run by the connection itself: workers run them all the time, and the session's preparation takes longer.
RENEWAL, RECORD = make_renewal(), make_record()


def lease_lost(job_id: UUID, attempt: int) -> LeaseLost:
    """Make the error of an attempt that writes to a job that it does not run."""
    return LeaseLost(f"attempt {attempt} of job {job_id} does not hold the lease")


def renew(session: Session, job_id: UUID, attempt: int, lease: timedelta, progress: dict[str, Any] | None = None) -> JobRequests:
    """Renew the lease and store the attempt's progress; return what clients have asked of the job.

    Args:
        progress: the changed fields of the progress; None as a value removes a field.

    Raises:
        LeaseLost: another attempt runs the job, or it has ended.
    """
    values = {"job": job_id, "of_attempt": attempt, "lease": lease, "changes": progress or {}}
    row = session.connection().execute(RENEWAL, values).one_or_none()
    if row is None:
        raise lease_lost(job_id, attempt)
    return JobRequests(cancel=row.cancel, stop=row.stop)


def add_artifacts(session: Session, job_id: UUID, attempt: int, objects: Sequence[StoredObject]) -> None:
    """Record uploaded objects. Raises LeaseLost."""
    if session.scalar(select(Job.id).where(*owned_by_attempt(job_id, attempt)).with_for_update()) is None:
        raise lease_lost(job_id, attempt)
    rows = [{"job_id": job_id, "attempt": attempt, **vars(stored)} for stored in objects]
    session.connection().execute(RECORD, rows)


def adopt_artifacts(session: Session, job_id: UUID, attempt: int, names: Collection[str], of_attempt: int) -> list[StoredObject]:
    """Make an earlier attempt's artifacts this one's, those of the names that exist. Raises LeaseLost."""
    query = select(Artifact).where(Artifact.job_id == job_id, Artifact.attempt == of_attempt, Artifact.name.in_(names))
    kept = [
        StoredObject(name=row.name, key=row.key, media_type=row.media_type, size_bytes=row.size_bytes, sha256=row.sha256)
        for row in session.scalars(query.order_by(Artifact.name))
    ]
    if kept:
        add_artifacts(session, job_id, attempt, kept)
    return kept


def save_resume_point(session: Session, job_id: UUID, attempt: int, point: ResumePoint) -> None:
    """Store where the next attempt goes on. Raises LeaseLost."""
    statement = update(Job).where(*owned_by_attempt(job_id, attempt)).values(resume_point=asdict(point))
    if session.execute(statement.returning(Job.id)).one_or_none() is None:
        raise lease_lost(job_id, attempt)


def finish(session: Session, job_id: UUID, attempt: int, outcome: AttemptOutcome) -> list[str]:
    """End the job as its attempt ended; return the key of its resume state, which is not needed any more. Raises LeaseLost."""
    owned = owned_by_attempt(job_id, attempt)
    key = session.scalar(select(Job.resume_point["key"].as_string()).where(*owned).with_for_update())
    move = transition(outcome.state, *owned).values(asdict(outcome))
    if end_attempts(session, move, Ending(outcome.state), outcome.error_message) == 0:
        raise lease_lost(job_id, attempt)
    return [] if key is None else [key]


def release(session: Session, job_id: UUID, attempt: int, reason: str, retries: RetryPolicy) -> None:
    """Give up an attempt that broke down: requeue the job, or fail it when this was the last attempt. Raises LeaseLost."""
    message = f"{retries.max_attempts} attempts failed, the last one by {reason}"
    if count_failure(session, owned_by_attempt(job_id, attempt), message, retries, Ending.BROKE_DOWN, reason) == (0, 0):
        raise lease_lost(job_id, attempt)


def hand_back(session: Session, job_id: UUID, attempt: int) -> None:
    """Requeue a job whose worker ends, without counting a failure. Raises LeaseLost."""
    if end_attempts(session, transition(JobState.QUEUED, *owned_by_attempt(job_id, attempt)), Ending.HANDED_BACK) == 0:
        raise lease_lost(job_id, attempt)


def requeue_expired_leases(session: Session, retries: RetryPolicy) -> tuple[int, int]:
    """Give up the attempts of silent workers. Jobs that a client wanted to cancel are canceled.

    Returns:
        How many jobs were requeued, and how many failed because that was their last attempt.
    """
    silent = (Job.state == JobState.RUNNING, Job.lease_expires_at < func.clock_timestamp())
    end_attempts(session, transition(JobState.CANCELED, *silent, Job.cancel_requested_at.is_not(None)), Ending.WENT_SILENT)
    message = f"{retries.max_attempts} attempts ended without a word from their worker"
    return count_failure(session, silent, message, retries, Ending.WENT_SILENT)


def count_failure(
    session: Session, which: Sequence[ColumnElement[bool]], message: str, retries: RetryPolicy, ending: Ending,
    reason: str | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Count a failure of running jobs: requeue them with a delay, or fail them with the message after the last attempt.

    An attempt that shared its process may have died of another's failure: it does not count, but the next ones run alone.

    Returns:
        How many jobs were requeued, and how many failed.
    """
    last = transition(JobState.FAILED, *which, ~Job.together, Job.failures + 1 >= retries.max_attempts)
    outcome = {"failures": Job.failures + 1, "error_code": ErrorCode.ATTEMPTS_EXHAUSTED, "error_message": message}
    failed = end_attempts(session, last.values(outcome), ending, reason)
    delay_s = retries.backoff.delay_sql(Job.failures)
    not_before = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, delay_s)
    counted = {"failures": Job.failures + case((Job.together, 0), else_=1), "alone": Job.alone | Job.together}
    again = transition(JobState.QUEUED, *which).values(**counted, not_before=not_before)
    return end_attempts(session, again, ending, reason), failed
