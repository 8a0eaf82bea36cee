from datetime import timedelta

from sqlalchemy import text

from jobs.queue.claims import Claimer, claim
from jobs.queue.retry_policy import RetryPolicy
from tests.services.jobs import add_job, read_job
from worker.reconciler.reconciler import SWEEP_LOCK, Reconciler, SweepResult

RETRIES = RetryPolicy(max_attempts=3, delay_s=0, delay_limit_s=0)


def test_a_sweep_repairs_everything_at_once(sessions, queue):
    silent, late = add_job(sessions, priority=1), add_job(sessions, start_before="2026-01-01T00:00:00Z")
    waiting = add_job(sessions)
    with sessions.begin() as session:
        claim(session, Claimer(worker="w", lease=timedelta(seconds=-1)))
    assert Reconciler(sessions, queue, RETRIES).sweep() == SweepResult(requeued=1, expired=1, messages=2)
    assert [read_job(sessions, job_id).state for job_id in (silent, late, waiting)] == ["queued", "expired", "queued"]
    assert Reconciler(sessions, queue, RETRIES).sweep() == SweepResult()


def test_only_one_sweeps_at_a_time(sessions, queue):
    add_job(sessions)
    with sessions.begin() as session:
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SWEEP_LOCK})
        assert Reconciler(sessions, queue, RETRIES).sweep() == SweepResult()
    assert Reconciler(sessions, queue, RETRIES).sweep().messages == 1
