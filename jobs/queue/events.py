"""What happened to jobs. A trigger of the database (migration 0007) writes the rows, so that no move goes untold."""

from collections.abc import Collection
from enum import StrEnum
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from jobs.tables import Event

VERSIONS = text("SELECT id, xmin::text AS version FROM jobs WHERE id = ANY(:ids)")


class EventType(StrEnum):
    QUEUED = "job.queued"  # again too, after an attempt that went wrong
    RUNNING = "job.running"
    CANCEL_REQUESTED = "job.cancel_requested"
    STOP_REQUESTED = "job.stop_requested"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"
    EXPIRED = "job.expired"


def since(session: Session, job_id: UUID, seq: int) -> list[Event]:
    """A job's events after one, in order."""
    return list(session.scalars(select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq)))


def last(session: Session, job_id: UUID) -> int:
    """The seq of a job's latest event; 0 when there is none."""
    return session.scalar(select(func.max(Event.seq)).where(Event.job_id == job_id)) or 0


def versions(session: Session, ids: Collection[UUID]) -> dict[UUID, str]:
    """A mark of each job's row that changes whenever the row does; without those that are gone."""
    return {row.id: row.version for row in session.execute(VERSIONS, {"ids": list(ids)})}
