"""The events of jobs. A trigger of the database (migration 0007) writes the rows, so that every state change has its event."""

from collections.abc import Collection
from enum import StrEnum
from uuid import UUID

from sqlalchemy import ARRAY, Text, Uuid, any_, bindparam, func, literal_column, select
from sqlalchemy.orm import Session

from jobs.tables import Event, Job

VERSION = literal_column("jobs.xmin::text", Text)  # of a job's row
VERSIONS = select(Job.id, VERSION.label("version")).where(Job.id == any_(bindparam("ids", type_=ARRAY(Uuid))))


class EventType(StrEnum):
    QUEUED = "job.queued"  # again too, after an attempt that went wrong
    RUNNING = "job.running"
    CANCEL_REQUESTED = "job.cancel_requested"
    STOP_REQUESTED = "job.stop_requested"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"
    EXPIRED = "job.expired"


def list_since(session: Session, job_id: UUID, seq: int) -> list[Event]:
    """List a job's events whose seq is greater than the given one, in order."""
    return list(session.scalars(select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq)))


def get_last_seq(session: Session, job_id: UUID) -> int:
    """Return the seq of a job's latest event; 0 when there is none."""
    return session.scalar(select(func.max(Event.seq)).where(Event.job_id == job_id)) or 0


def get_versions(session: Session, ids: Collection[UUID]) -> dict[UUID, str]:
    """Return the version of each job's row, which changes whenever the row does. Jobs that are gone are left out."""
    return {row.id: row.version for row in session.execute(VERSIONS, {"ids": list(ids)})}
