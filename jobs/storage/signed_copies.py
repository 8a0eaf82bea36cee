"""Signed copies of results: which jobs wait for theirs, and the rows of the copies. Nothing here commits."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, func, insert, literal_column, or_, select
from sqlalchemy.orm import Session

from jobs.states import JobState
from jobs.storage import artifacts
from jobs.storage.artifacts import StoredObject
from jobs.tables import Artifact, Job

MAX_TRIES = 3
FOLDER = "signed/"
# A literal and no parameter, because the partial index is of this state alone.
SUCCEEDED: ColumnElement[str] = literal_column(f"'{JobState.SUCCEEDED}'")


def list_unsigned(session: Session, limit: int) -> list[UUID]:
    """List jobs without their signed copies, the latest first, because a client may wait for those."""
    query = select(Job.id).where(Job.state == SUCCEEDED, Job.signed_at.is_(None))
    return list(session.scalars(query.order_by(Job.finished_at.desc()).limit(limit)))


def lock_unsigned(session: Session, job_id: UUID) -> Job | None:
    """Lock a job against signing, tidying and deleting until the transaction ends; None when it is locked or signed."""
    query = select(Job).where(Job.id == job_id, Job.state == JobState.SUCCEEDED, Job.signed_at.is_(None))
    return session.scalar(query.with_for_update(skip_locked=True, key_share=True))


def count_try(job: Job) -> bool:
    """Count a try before it is made, because it may end the process; return whether a try was left.

    The job counts as untidy again, so that the objects of a try that is cut off are deleted.
    """
    job.tidied_at = None
    if job.sign_tries >= MAX_TRIES:
        finish(job)
        return False
    job.sign_tries += 1
    return True


def finish(job: Job) -> None:
    """Note that no more copies will be made."""
    job.signed_at = func.clock_timestamp()


def list_uncopied(session: Session, job: Job) -> list[Artifact]:
    """List the job's results that have no signed copy yet."""
    results = or_(Artifact.name.in_(("result.png", "photo.png")), Artifact.name.like("animation.%"))
    of_job = artifacts.select_artifacts(job)
    copied = set(session.scalars(of_job.where(Artifact.name.like(f"{FOLDER}%")).with_only_columns(Artifact.name)))
    found = session.scalars(of_job.where(results).order_by(Artifact.name))
    return [artifact for artifact in found if FOLDER + artifact.name not in copied]


def add_copies(session: Session, job: Job, copies: Sequence[StoredObject]) -> None:
    """Store the rows of signed copies."""
    if copies:
        session.execute(insert(Artifact), [{"job_id": job.id, "attempt": job.attempt, **vars(copy)} for copy in copies])
