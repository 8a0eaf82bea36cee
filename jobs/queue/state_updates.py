"""The statements that change a job's state. Nothing here commits."""

from typing import Any

from sqlalchemy import ColumnElement, Update, func, null, tuple_, update
from sqlalchemy.orm import Session

from jobs.states import Ending, JobState, source_states
from jobs.tables import Attempt, Job


def transition(state: JobState, *where: ColumnElement[bool]) -> Update:
    """Build the statement that moves jobs to a state, from the states that allow it only.

    Besides the claim, no other statement changes a state.
    """
    values: dict[str, Any] = {"state": state, "lease_expires_at": None}
    if state.terminal:
        retained = func.make_interval(0, 0, 0, 0, 0, 0, Job.spec["retain_for_s"].as_integer())
        values |= {"resume_point": null(), "not_before": null()}
        now = func.statement_timestamp()  # the same time in both columns
        values |= {"finished_at": now, "expires_at": now + retained}
    return update(Job).where(Job.state.in_(source_states(state)), *where).values(values)


def end_attempts(session: Session, move: Update, ending: Ending, reason: str | None = None) -> int:
    """Run a transition of running jobs and close the attempts that ran them; return how many."""
    ended = session.execute(move.returning(Job.id, Job.attempt)).all()
    if ended:
        attempts = update(Attempt).where(tuple_(Attempt.job_id, Attempt.attempt).in_(ended))
        session.execute(attempts.values(ended_at=func.clock_timestamp(), ending=ending, reason=reason))
    return len(ended)
