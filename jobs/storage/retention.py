"""Retention: which objects of ended jobs are still needed, and which jobs may be deleted."""

from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from jobs.errors import StorageUnavailable
from jobs.states import JobState
from jobs.storage.objects import Storage, job_prefix
from jobs.tables import Artifact, Job


def list_untidy(session: Session, after: timedelta, limit: int) -> list[Job]:
    """List jobs that ended that long ago and may have more objects than their result."""
    ended = Job.finished_at < func.clock_timestamp() - after
    return list(session.scalars(select(Job).where(ended, Job.tidied_at.is_(None)).order_by(Job.finished_at).limit(limit)))


def lock_needed_keys(session: Session, job: Job) -> set[str]:
    """Return the keys of the objects that an ended job shows, and keep them from changing until the transaction ends.

    A canceled job shows no objects.
    """
    session.execute(select(Job.id).where(Job.id == job.id).with_for_update(key_share=True))
    if job.state == JobState.CANCELED:
        return set()
    return set(session.scalars(select(Artifact.key).where(Artifact.job_id == job.id, Artifact.attempt == job.attempt)))


def mark_tidied(session: Session, job: Job) -> None:
    """Delete the artifact rows of earlier attempts, and note that the job is tidied."""
    others = Artifact.attempt != (job.attempt if job.state != JobState.CANCELED else -1)
    session.execute(delete(Artifact).where(Artifact.job_id == job.id, others))
    session.execute(update(Job).where(Job.id == job.id).values(tidied_at=func.clock_timestamp()))


def list_expired(session: Session, limit: int) -> list[Job]:
    """List jobs past their retention from which no active job goes on."""
    return list(session.scalars(select(Job).where(*deletable()).order_by(Job.expires_at).limit(limit)))


def lock_expired(session: Session, job: Job) -> bool:
    """Return whether one job may still be deleted; no new job can go on from it until the transaction ends."""
    locked = select(Job.id).where(Job.id == job.id).with_for_update()
    return session.scalar(locked) is not None and session.scalar(select(Job.id).where(Job.id == job.id, *deletable())) is not None


def deletable() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of jobs past their retention from which no active job goes on."""
    child = aliased(Job)
    descends = or_(child.parent == Job.id, child.root == Job.id)
    return Job.expires_at < func.clock_timestamp(), ~select(child.id).where(descends, child.finished_at.is_(None)).exists()


def delete_job(session: Session, storage: Storage, job: Job) -> int:
    """Delete a job's objects, check that they are gone, delete its row; return how many objects. Raises StorageUnavailable."""
    keys = list(storage.keys(job_prefix(job.tenant, job.id)))
    storage.remove(keys)
    if keys and (remaining := list(storage.keys(job_prefix(job.tenant, job.id)))):
        raise StorageUnavailable(f"the store still has {len(remaining)} objects of job {job.public_id}")
    session.execute(delete(Job).where(Job.id == job.id))
    return len(keys)
