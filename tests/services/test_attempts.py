import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import func, update

from jobs.errors import ArtifactNotFound, ErrorCode, JobNotFound, LeaseLost
from jobs.queue import attempts, jobs
from jobs.queue.attempts import AttemptOutcome
from jobs.queue.claims import Claimer
from jobs.queue.claims import claim as claim_next
from jobs.queue.retry_policy import RetryPolicy
from jobs.queue.state_updates import transition
from jobs.states import TRANSITIONS, JobState
from jobs.storage import artifacts
from jobs.storage.artifacts import StoredObject
from jobs.tables import Job
from tests.services.jobs import add_job, read_job

RETRIES = RetryPolicy(max_attempts=3, delay_s=0, delay_limit_s=0)
TWICE = replace(RETRIES, max_attempts=2)
LEASE = timedelta(seconds=60)
FRAME = StoredObject(name="frames/00000.webp", key="k", media_type="image/webp", size_bytes=3, sha256="a" * 64)


def claim(sessions, worker="w", warm=None):
    with sessions.begin() as session:
        return claim_next(session, Claimer(worker=worker, lease=LEASE, warm=[warm] if warm else []))


def put_into(sessions, job_id, state):
    lease = func.now() + LEASE if state is JobState.RUNNING else None
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(state=state, lease_expires_at=lease))


def let_lease_expire(sessions, job_id):
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_expires_at=func.now() - LEASE))


@pytest.mark.parametrize("target", [state for state in JobState if state is not JobState.RUNNING])  # a claim does that one
@pytest.mark.parametrize("source", JobState)
def test_a_job_moves_where_the_table_says_and_nowhere_else(sessions, source, target):
    job_id = add_job(sessions)
    put_into(sessions, job_id, source)
    with sessions.begin() as session:
        moved = len(session.execute(transition(target, Job.id == job_id).returning(Job.id)).all())
    expected = target if target in TRANSITIONS[source] else source
    assert (moved, read_job(sessions, job_id).state) == (int(target in TRANSITIONS[source]), expected)


@pytest.mark.parametrize("source", JobState)
def test_a_claim_starts_what_is_queued_and_nothing_else(sessions, source):
    job_id = add_job(sessions)
    put_into(sessions, job_id, source)
    assert (claim(sessions) is not None) == (JobState.RUNNING in TRANSITIONS[source])


def test_a_claim_counts_the_attempt_and_holds_a_lease(sessions):
    job_id = add_job(sessions)
    job = claim(sessions, "worker-1")
    assert (job.id, job.state, job.attempt, job.worker) == (job_id, "running", 1, "worker-1")
    assert timedelta(seconds=55) < job.lease_expires_at - datetime.now(UTC) <= LEASE


def test_of_many_workers_racing_for_one_job_one_wins(sessions):
    for _ in range(10):
        add_job(sessions)
        gate = threading.Barrier(4)
        won = []

        def race(gate=gate, won=won):
            gate.wait()
            won.append(claim(sessions))

        threads = [threading.Thread(target=race) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(job is not None for job in won) == 1


def test_workers_that_claim_together_never_share_a_job(sessions):
    expected = {add_job(sessions) for _ in range(40)}
    claimed = []

    def drain():
        while len(claimed) < len(expected):
            if job := claim(sessions):
                claimed.append(job.id)

    threads = [threading.Thread(target=drain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(expected)


def test_higher_priority_runs_first_then_age(sessions):
    old, urgent, young = add_job(sessions), add_job(sessions, priority=5), add_job(sessions)
    assert [claim(sessions).id for _ in range(3)] == [urgent, old, young]


def test_among_equals_the_warm_model_runs_first(sessions):
    cold, warm, urgent = add_job(sessions), add_job(sessions, model="other"), add_job(sessions, priority=1)
    assert [claim(sessions, warm="other").id for _ in range(3)] == [urgent, warm, cold]


def test_a_claim_in_progress_hides_no_other_tenants_job(sessions):
    add_job(sessions, tenant="one")
    add_job(sessions, tenant="two")
    with sessions.begin() as first:
        assert claim_next(first, Claimer(worker="w1", lease=LEASE)) is not None
        with sessions.begin() as second:
            assert claim_next(second, Claimer(worker="w2", lease=LEASE)) is not None


def test_tenants_take_turns(sessions):
    many = [add_job(sessions, tenant="many") for _ in range(3)]
    few = add_job(sessions, tenant="few")
    order = [claim(sessions).id for _ in range(4)]
    assert order.index(few) <= 1
    assert [job_id for job_id in order if job_id != few] == many


def test_what_should_have_started_is_not_claimed_and_expires(sessions):
    late = add_job(sessions, start_before="2026-01-01T00:00:00Z")
    assert claim(sessions) is None
    with sessions.begin() as session:
        assert jobs.expire(session) == 1
    job = read_job(sessions, late)
    assert (job.state, job.expires_at - job.finished_at) == ("expired", timedelta(days=7))


def test_a_job_that_has_begun_in_time_may_go_on_later(sessions):
    job_id = add_job(sessions, start_before="2100-01-01T00:00:00Z")
    claim(sessions)
    with sessions.begin() as session:
        attempts.hand_back(session, job_id, 1)
        session.execute(update(Job).where(Job.id == job_id).values(start_before=func.now() - LEASE))
    with sessions.begin() as session:
        assert jobs.expire(session) == 0
    assert claim(sessions).id == job_id


def test_a_lease_is_renewed_with_progress_and_brings_back_the_wish_to_cancel(sessions):
    add_job(sessions)
    job = claim(sessions)
    with sessions.begin() as session:
        assert not attempts.renew(session, job.id, 1, LEASE, {"iteration": 3}).cancel
    with sessions.begin() as session:
        jobs.request_cancel(session, "default", job.id)
    with sessions.begin() as session:
        assert attempts.renew(session, job.id, 1, LEASE).cancel
    with sessions.begin() as session:
        attempts.renew(session, job.id, 1, LEASE, {"phase": "upload", "psnr_db": 30.5})
    assert read_job(sessions, job.id).progress == {"iteration": 3, "phase": "upload", "psnr_db": 30.5}
    with sessions.begin() as session:
        attempts.renew(session, job.id, 1, LEASE, {"psnr_db": None})
    assert read_job(sessions, job.id).progress == {"iteration": 3, "phase": "upload"}


def test_an_attempt_that_lost_its_lease_can_write_nothing(sessions):
    job_id = add_job(sessions)
    claim(sessions)
    let_lease_expire(sessions, job_id)
    with sessions.begin() as session:
        assert attempts.requeue_expired_leases(session, RETRIES) == (1, 0)
    assert claim(sessions).attempt == 2
    stale = [
        lambda session: attempts.renew(session, job_id, 1, LEASE, {"iteration": 9}),
        lambda session: attempts.add_artifacts(session, job_id, 1, [FRAME]),
        lambda session: attempts.finish(session, job_id, 1, AttemptOutcome(state=JobState.SUCCEEDED)),
    ]
    for write in stale:
        with pytest.raises(LeaseLost), sessions.begin() as session:
            write(session)
    job = read_job(sessions, job_id)
    assert (job.state, job.attempt, job.failures, job.progress) == ("running", 2, 1, None)


def test_the_last_attempt_that_falls_silent_fails_the_job(sessions):
    job_id = add_job(sessions)
    for _ in range(3):
        claim(sessions)
        let_lease_expire(sessions, job_id)
        with sessions.begin() as session:
            attempts.requeue_expired_leases(session, RETRIES)
    job = read_job(sessions, job_id)
    assert (job.state, job.failures, job.error_code) == ("failed", 3, ErrorCode.ATTEMPTS_EXHAUSTED)


def test_a_silent_job_that_somebody_canceled_is_canceled(sessions):
    job_id = add_job(sessions)
    claim(sessions)
    with sessions.begin() as session:
        jobs.request_cancel(session, "default", job_id)
    let_lease_expire(sessions, job_id)
    with sessions.begin() as session:
        assert attempts.requeue_expired_leases(session, RETRIES) == (0, 0)
    assert read_job(sessions, job_id).state == "canceled"


def test_an_attempt_that_broke_down_is_tried_again_until_the_last(sessions):
    job_id = add_job(sessions)
    states = []
    for attempt in (1, 2):
        claim(sessions)
        with sessions.begin() as session:
            attempts.release(session, job_id, attempt, "ZeroDivisionError: division by zero", replace(RETRIES, max_attempts=2))
        states.append(read_job(sessions, job_id).state)
    assert states == ["queued", "failed"]
    assert read_job(sessions, job_id).error_message == "2 attempts failed, the last one by ZeroDivisionError: division by zero"


def test_a_lease_that_lives_is_left_alone(sessions):
    add_job(sessions)
    claim(sessions)
    with sessions.begin() as session:
        assert attempts.requeue_expired_leases(session, RETRIES) == (0, 0)


def test_canceling_ends_what_waits_and_asks_what_runs(sessions):
    waiting, running = add_job(sessions), add_job(sessions, priority=1)
    claim(sessions)
    with sessions.begin() as session:
        assert jobs.request_cancel(session, "default", waiting).state == "canceled"
        assert jobs.request_cancel(session, "default", running).state == "running"
        assert jobs.request_cancel(session, "default", waiting).state == "canceled"
    assert read_job(sessions, running).cancel_requested_at is not None


def test_other_tenants_jobs_do_not_exist(sessions):
    job_id = add_job(sessions, tenant="one")
    with sessions.begin() as session:
        for read in (jobs.get, jobs.request_cancel):
            with pytest.raises(JobNotFound):
                read(session, "two", job_id)
    assert read_job(sessions, job_id).state == "queued"


def test_a_job_shows_the_artifacts_of_its_latest_attempt(sessions):
    job_id = add_job(sessions)
    claim(sessions)
    with sessions.begin() as session:
        attempts.add_artifacts(session, job_id, 1, [FRAME])
        job = session.get(Job, job_id)
        assert [frame.name for frame in artifacts.list_frames(session, job, after="", limit=9)] == [FRAME.name]
        assert artifacts.list_without_frames(session, job) == []
        job.attempt = 2
        assert artifacts.list_frames(session, job, after="", limit=9) == []
        with pytest.raises(ArtifactNotFound):
            artifacts.get(session, job, FRAME.name)


def test_an_unknown_job_is_said_to_be_unknown(sessions):
    with sessions.begin() as session, pytest.raises(JobNotFound):
        jobs.get(session, "default", uuid4())
