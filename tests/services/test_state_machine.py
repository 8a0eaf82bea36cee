"""Whatever clients, workers, crashes and sweeps do in whatever order: a job's life stays legal, and every move is told."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import func, select, text, update

from jobs.errors import ErrorCode, LeaseLost
from jobs.queue import attempts
from jobs.queue import jobs as job_rows
from jobs.queue.attempts import AttemptOutcome
from jobs.queue.claims import Claimer, claim
from jobs.queue.retry_policy import RetryPolicy
from jobs.states import TRANSITIONS, JobState
from jobs.tables import Attempt, Event, Job, Tenant
from tests.services.jobs import add_job

LEASE = timedelta(minutes=5)
RETRIES = RetryPolicy(max_attempts=3, delay_s=0, delay_limit_s=0)
TENANTS = ("default", "other")
CAP = 2  # of the other tenant
HOW = st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED])


@dataclass
class Known:
    """What must be true of a job."""

    tenant: str
    priority: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    failures: int = 0
    wants_cancel: bool = False


class Lives(RuleBasedStateMachine):
    sessions = None

    def __init__(self):
        super().__init__()
        self.known: dict = {}
        with self.sessions.begin() as session:
            session.execute(text("TRUNCATE jobs CASCADE"))
            for name in TENANTS:
                session.merge(
                    Tenant(id=name, max_running=CAP if name == "other" else None, served_at=datetime(2000, 1, 1, tzinfo=UTC))
                )

    def jobs(self, *states):
        return [job_id for job_id, known in self.known.items() if known.state in states]  # by age: ids differ from run to run

    def running(self):
        return self.jobs(JobState.RUNNING)

    def pick(self, ids, data):
        return data.draw(st.sampled_from(ids))

    def write(self, action):
        with self.sessions.begin() as session:
            return action(session)

    @rule(tenant=st.sampled_from(TENANTS), priority=st.integers(-1, 1))
    def submit(self, tenant, priority):
        self.known[add_job(self.sessions, tenant=tenant, priority=priority)] = Known(tenant, priority)

    @rule()
    def claim(self):
        with self.sessions.begin() as session:
            job = claim(session, Claimer(worker="w", lease=LEASE))
        full = sum(self.known[job_id].tenant == "other" for job_id in self.running()) >= CAP
        waiting = [
            self.known[job_id] for job_id in self.jobs(JobState.QUEUED) if not full or self.known[job_id].tenant != "other"
        ]
        assert (job is None) == (not waiting)
        if job is not None:
            known = self.known[job.id]
            assert known in waiting
            assert known.priority == max(other.priority for other in waiting if other.tenant == known.tenant)
            known.state, known.attempt = JobState.RUNNING, known.attempt + 1

    @precondition(running)
    @rule(data=st.data())
    def beat(self, data):
        job_id = self.pick(self.running(), data)
        known = self.known[job_id]
        wishes = self.write(lambda session: attempts.renew(session, job_id, known.attempt, LEASE, {"iteration": 1}))
        assert wishes.cancel == known.wants_cancel

    @precondition(running)
    @rule(data=st.data(), state=HOW)
    def finish(self, data, state):
        job_id = self.pick(self.running(), data)
        code = ErrorCode.TIMEOUT if state == JobState.FAILED else None
        self.write(
            lambda session: attempts.finish(
                session, job_id, self.known[job_id].attempt, AttemptOutcome(state=state, error_code=code)
            )
        )
        self.known[job_id].state = state

    @precondition(running)
    @rule(data=st.data())
    def break_down(self, data):
        job_id = self.pick(self.running(), data)
        self.write(lambda session: attempts.release(session, job_id, self.known[job_id].attempt, "a reason", RETRIES))
        self.count_failure(job_id)

    @precondition(running)
    @rule(data=st.data())
    def hand_back(self, data):
        job_id = self.pick(self.running(), data)
        self.write(lambda session: attempts.hand_back(session, job_id, self.known[job_id].attempt))
        self.known[job_id].state = JobState.QUEUED

    @precondition(running)
    @rule(data=st.data())
    def crash(self, data):
        job_id = self.pick(self.running(), data)
        with self.sessions.begin() as session:
            session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=func.now() - timedelta(seconds=1)))
        self.write(lambda session: attempts.requeue_expired_leases(session, RETRIES))
        if self.known[job_id].wants_cancel:
            self.known[job_id].state = JobState.CANCELED
        else:
            self.count_failure(job_id)

    def count_failure(self, job_id):
        known = self.known[job_id]
        known.failures += 1
        known.state = JobState.FAILED if known.failures >= RETRIES.max_attempts else JobState.QUEUED

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def cancel(self, data):
        job_id = self.pick(list(self.known), data)
        known = self.known[job_id]
        self.write(lambda session: job_rows.request_cancel(session, known.tenant, job_id))
        known.wants_cancel |= known.state == JobState.RUNNING
        if known.state == JobState.QUEUED:
            known.state = JobState.CANCELED

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def stop(self, data):
        job_id = self.pick(list(self.known), data)
        self.write(lambda session: job_rows.request_stop(session, self.known[job_id].tenant, job_id))

    @precondition(lambda self: self.jobs(JobState.QUEUED))
    @rule(data=st.data())
    def expire(self, data):
        job_id = self.pick(self.jobs(JobState.QUEUED), data)
        with self.sessions.begin() as session:
            session.execute(update(Job).where(Job.id == job_id).values(start_before=func.now() - timedelta(seconds=1)))
        self.write(lambda session: job_rows.expire(session))
        if self.known[job_id].attempt == 0:  # what has begun once is no longer late
            self.known[job_id].state = JobState.EXPIRED

    @precondition(lambda self: any(known.attempt for known in self.known.values()))
    @rule(data=st.data(), act=st.sampled_from(["renew", "finish", "release", "hand_back", "add_artifacts"]))
    def zombie(self, data, act):
        """An attempt that is over writes nothing."""
        over = [
            (job_id, attempt)
            for job_id, known in self.known.items()
            for attempt in range(1, known.attempt + (known.state != JobState.RUNNING))
        ]
        if over:
            job_id, attempt = data.draw(st.sampled_from(over))
            arguments = {
                "renew": (LEASE,), "finish": (AttemptOutcome(state=JobState.SUCCEEDED),), "release": ("a reason", RETRIES),
                "hand_back": (), "add_artifacts": ([],),
            }  # fmt: skip
            with pytest.raises(LeaseLost):
                self.write(lambda session: getattr(attempts, act)(session, job_id, attempt, *arguments[act]))

    @invariant()
    def rows_are_as_they_must_be(self):
        with self.sessions() as session:
            rows = {row.id: row for row in session.scalars(select(Job))}
            held = Counter(session.scalars(select(Attempt.job_id).where(Attempt.ended_at.is_(None))))
        assert rows.keys() == self.known.keys()
        for job_id, known in self.known.items():
            row = rows[job_id]
            assert (row.state, row.attempt, row.failures) == (known.state, known.attempt, known.failures)
            assert JobState(row.state).terminal == (row.finished_at is not None)
            assert held[job_id] == (known.state == JobState.RUNNING)

    @invariant()
    def every_move_is_told_and_legal(self):
        with self.sessions() as session:
            told = session.execute(select(Event.job_id, Event.type).order_by(Event.seq)).all()
        for job_id, known in self.known.items():
            moves = [kind.removeprefix("job.") for job, kind in told if job == job_id and not kind.endswith("_requested")]
            assert (moves[0], moves[-1]) == ("queued", known.state)
            assert all(JobState(after) in TRANSITIONS[JobState(before)] for before, after in pairwise(moves))


def test_every_life_of_a_job_is_legal(sessions):
    machine = type("LivesHere", (Lives,), {"sessions": sessions})
    checks = list(HealthCheck)
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=checks, database=None),
    )
