"""Which jobs' results are to get signed copies, and the rows of those copies. Never commits."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, func, insert, literal_column, or_, select
from sqlalchemy.orm import Session

from jobs.queue.repository import JobRepository, StoredObject
from jobs.states import JobState
from jobs.tables import Artifact, Job

MOST_TRIES = 3
FOLDER = "signed/"
SUCCEEDED: ColumnElement[str] = literal_column(f"'{JobState.SUCCEEDED}'")  # no parameter: the index is of this state alone


def unsigned(session: Session, limit: int) -> list[UUID]:
    """Jobs without their signed copies, those that ended last first: of them somebody may wait."""
    query = select(Job.id).where(Job.state == SUCCEEDED, Job.signed_at.is_(None))
    return list(session.scalars(query.order_by(Job.finished_at.desc()).limit(limit)))


def take(session: Session, job_id: UUID) -> Job | None:
    """A job that nobody else signs, tidies or deletes until the transaction ends; None when somebody does, or has."""
    query = select(Job).where(Job.id == job_id, Job.state == JobState.SUCCEEDED, Job.signed_at.is_(None))
    return session.scalar(query.with_for_update(skip_locked=True, key_share=True))


def count_try(job: Job) -> bool:
    """Note a try before it is made, as it may end the process; whether there was one left.

    What the try leaves behind when it is cut off is then tidied, also of a job that was tidied before.
    """
    job.tidied_at = None
    if job.sign_tries >= MOST_TRIES:
        end(job)
        return False
    job.sign_tries += 1
    return True


def end(job: Job) -> None:
    """No more copies will be made."""
    job.signed_at = func.clock_timestamp()


def to_copy(session: Session, job: Job) -> list[Artifact]:
    """The job's results that have no signed copy yet."""
    results = or_(Artifact.name.in_(("result.png", "photo.png")), Artifact.name.like("animation.%"))
    of_job = JobRepository.artifacts_of(job)
    copied = set(session.scalars(of_job.where(Artifact.name.like(f"{FOLDER}%")).with_only_columns(Artifact.name)))
    found = session.scalars(of_job.where(results).order_by(Artifact.name))
    return [artifact for artifact in found if FOLDER + artifact.name not in copied]


def add_copies(session: Session, job: Job, copies: Sequence[StoredObject]) -> None:
    if copies:
        session.execute(insert(Artifact), [{"job_id": job.id, "attempt": job.attempt, **vars(copy)} for copy in copies])
