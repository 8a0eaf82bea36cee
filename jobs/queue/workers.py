"""The status that each worker process reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.states import JobState
from jobs.tables import Job, Worker


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """What a worker reports about itself."""

    name: str
    pool: str
    models: Sequence[str]  # in its memory
    job_id: UUID | None  # the job that it runs


def report_status(session: Session, status: WorkerStatus) -> None:
    """Store a worker's status when it begins or ends something. Liveness is the progress of its job, not this row."""
    values = {"pool": status.pool, "models": list(status.models), "job_id": status.job_id, "seen_at": func.clock_timestamp()}
    statement = insert(Worker).values(name=status.name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def remove_worker(session: Session, name: str) -> None:
    """Delete the row of a worker that ends."""
    session.execute(delete(Worker).where(Worker.name == name))


def delete_silent_workers(session: Session, after: timedelta) -> int:
    """Delete workers that run no job and have reported nothing for that long; return how many."""
    running = select(Job.id).where(Job.worker == Worker.name, Job.state == JobState.RUNNING).exists()
    silent = delete(Worker).where(Worker.seen_at < func.clock_timestamp() - after, ~running).returning(Worker.name)
    return len(session.execute(silent).all())
