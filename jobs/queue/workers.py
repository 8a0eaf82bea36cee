"""What the worker processes say of themselves."""

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
    """How a worker stands."""

    name: str
    pool: str
    models: Sequence[str]  # in its memory
    job_id: UUID | None  # that it runs


def report(session: Session, said: WorkerStatus) -> None:
    """Note how a worker stands, when it begins or ends something: liveness is its job's progress, not this."""
    values = {"pool": said.pool, "models": list(said.models), "job_id": said.job_id, "seen_at": func.clock_timestamp()}
    statement = insert(Worker).values(name=said.name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def leave(session: Session, name: str) -> None:
    """Forget a worker that ends."""
    session.execute(delete(Worker).where(Worker.name == name))


def forget_silent(session: Session, after: timedelta) -> int:
    """Forget workers that run no job and have said nothing for that long; how many."""
    running = select(Job.id).where(Job.worker == Worker.name, Job.state == JobState.RUNNING).exists()
    gone = delete(Worker).where(Worker.seen_at < func.clock_timestamp() - after, ~running).returning(Worker.name)
    return len(session.execute(gone).all())
