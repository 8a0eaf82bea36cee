"""What finished jobs leave behind: which objects are still needed, and until when."""

from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from jobs.errors import StorageUnavailable
from jobs.states import JobState
from jobs.storage.objects import Storage, job_prefix
from jobs.tables import Artifact, Job


def untidy(session: Session, after: timedelta, limit: int) -> list[Job]:
    """Jobs that ended that long ago and may have left more than their result."""
    ended = Job.finished_at < func.clock_timestamp() - after
    return list(session.scalars(select(Job).where(ended, Job.tidied_at.is_(None)).order_by(Job.finished_at).limit(limit)))


def needed(session: Session, job: Job) -> set[str]:
    """Keys of the objects that an ended job shows; a canceled one shows none. None is added until the transaction ends."""
    session.execute(select(Job.id).where(Job.id == job.id).with_for_update(key_share=True))
    if job.state == JobState.CANCELED:
        return set()
    return set(session.scalars(select(Artifact.key).where(Artifact.job_id == job.id, Artifact.attempt == job.attempt)))


def tidied(session: Session, job: Job) -> None:
    """Forget the artifacts of earlier attempts."""
    others = Artifact.attempt != (job.attempt if job.state != JobState.CANCELED else -1)
    session.execute(delete(Artifact).where(Artifact.job_id == job.id, others))
    session.execute(update(Job).where(Job.id == job.id).values(tidied_at=func.clock_timestamp()))


def expired(session: Session, limit: int) -> list[Job]:
    """Jobs that are no longer retained, and that no job which has not ended goes on from."""
    return list(session.scalars(select(Job).where(*may_go()).order_by(Job.expires_at).limit(limit)))


def still_expired(session: Session, job: Job) -> bool:
    """The same of one job, which nobody can go on from any more until the transaction ends."""
    locked = select(Job.id).where(Job.id == job.id).with_for_update()
    return session.scalar(locked) is not None and session.scalar(select(Job.id).where(Job.id == job.id, *may_go())) is not None


def may_go() -> tuple[ColumnElement[bool], ...]:
    child = aliased(Job)
    kin = or_(child.parent == Job.id, child.root == Job.id)
    return Job.expires_at < func.clock_timestamp(), ~select(child.id).where(kin, child.finished_at.is_(None)).exists()


def forget(session: Session, storage: Storage, job: Job) -> int:
    """Delete a job's objects, see that they are gone, then delete its row; how many objects. Raises StorageUnavailable."""
    keys = list(storage.keys(job_prefix(job.tenant, job.id)))
    storage.remove(keys)
    if keys and (left := list(storage.keys(job_prefix(job.tenant, job.id)))):
        raise StorageUnavailable(f"the store still has {len(left)} objects of job {job.id}")
    session.execute(delete(Job).where(Job.id == job.id))
    return len(keys)
