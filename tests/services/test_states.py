"""The state table in the code and the trigger of migration 0007, which writes the events, say the same."""

import re

import pytest
from sqlalchemy import delete, func, select, text, update

from jobs.queue.events import EventType
from jobs.queue.state_updates import transition
from jobs.states import TRANSITIONS, JobState
from jobs.tables import Event, Job
from tests.services.jobs import add_job

PAIRS = [(source, target) for source in JobState for target in JobState]


@pytest.fixture
def job_id(sessions):
    return add_job(sessions)


def lease(state):
    return func.now() if state is JobState.RUNNING else None


def events_of(session, job_id, source, statement):
    """What is written about a job in one state when a statement runs."""
    which = update(Job).where(Job.id == job_id)
    session.execute(which.values(state=source, lease_expires_at=lease(source), cancel_requested_at=None, stop_requested_at=None))
    session.execute(delete(Event))
    session.execute(statement)
    return [(event.type, event.data["state"]) for event in session.scalars(select(Event).order_by(Event.seq))]


def test_the_database_knows_the_same_states(sessions):
    with sessions() as session:
        check = session.scalar(text("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'ck_jobs_state'"))
    assert set(re.findall(r"'(\w+)'", check)) == set(JobState)


def test_a_new_job_is_told_of(sessions, job_id):
    with sessions() as session:
        assert list(session.scalars(select(Event.type))) == [EventType.QUEUED]


def test_each_transition_of_the_table_is_told_once_and_no_other_happens(sessions, job_id):
    with sessions() as session:
        told = {
            pair: events_of(
                session, job_id, pair[0], transition(pair[1], Job.id == job_id).values(lease_expires_at=lease(pair[1]))
            )
            for pair in PAIRS
        }
    legal = {(source, target) for source, targets in TRANSITIONS.items() for target in targets}
    assert told == {pair: [(EventType(f"job.{pair[1]}"), pair[1])] if pair in legal else [] for pair in PAIRS}


def test_the_trigger_tells_of_every_change_of_a_state_whoever_makes_it(sessions, job_id):
    """Old code too, which may know other transitions."""
    with sessions() as session:
        for source, target in PAIRS:
            statement = update(Job).where(Job.id == job_id).values(state=target, lease_expires_at=lease(target))
            told = events_of(session, job_id, source, statement)
            assert told == ([] if source is target else [(EventType(f"job.{target}"), target)])


@pytest.mark.parametrize(
    ("column", "kind"),
    [("cancel_requested_at", EventType.CANCEL_REQUESTED), ("stop_requested_at", EventType.STOP_REQUESTED)],
)
@pytest.mark.parametrize("state", JobState)
def test_a_request_is_told_once(sessions, job_id, state, column, kind):
    statement = update(Job).where(Job.id == job_id).values({column: func.now()})
    with sessions() as session:
        assert events_of(session, job_id, state, statement) == [(kind, state)]
        session.execute(statement)
        assert session.scalar(select(func.count()).select_from(Event)) == 1


def test_the_trigger_writes_no_type_but_those_of_the_code(sessions):
    with sessions() as session:
        source = session.scalar(text("SELECT pg_get_functiondef('dragqueue_tell'::regproc)"))
    written = set(re.findall(r"'(job\.\w+)'", source)) | {f"job.{state}" for state in JobState}
    assert written == set(EventType)
