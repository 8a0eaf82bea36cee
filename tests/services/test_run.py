"""One attempt at a time, in this process: how each kind of end is recorded."""

import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch
from sqlalchemy.exc import OperationalError

from jobs.errors import ErrorCode, LeaseLost, StorageUnavailable
from jobs.queue import attempts, jobs
from jobs.queue.attempts import AttemptOutcome
from jobs.queue.claims import Claimer, claim
from jobs.queue.retry_policy import RetryPolicy
from jobs.spec.job_spec import Movable
from jobs.states import JobState
from jobs.storage.objects import artifact_key
from jobs.tables import Job, Worker
from tests.generators import tiny_generator
from tests.services.jobs import DOCUMENT, add_job, read_job
from worker.edit.artifacts import ArtifactWriter
from worker.edit.resume_state import ResumeState, ResumeStateUnreadable
from worker.execution.attempt import Attempt
from worker.execution.drain import Drain
from worker.execution.lease import Lease, Pace
from worker.execution.runner import Runner


class BrokenStorage:
    """A store whose every upload raises."""

    def __init__(self, error):
        self.error = error

    def put(self, key, data, media_type):
        raise self.error


class FlakyStorage:
    """A store that is away for some calls."""

    def __init__(self, storage, failures):
        self.storage = storage
        self.failures = failures

    def __getattr__(self, name):
        def call(*arguments):
            if self.failures:
                self.failures -= 1
                raise StorageUnavailable("away")
            return getattr(self.storage, name)(*arguments)

        return call


class BrokenSessions:
    """A database that is away for some transactions."""

    def __init__(self, sessions, failures):
        self.sessions = sessions
        self.failures = failures

    def begin(self):
        if self.failures:
            self.failures -= 1
            raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))
        return self.sessions.begin()


@pytest.fixture
def runner(settings, sessions, storage, queue):
    return Runner(settings, sessions, storage, queue)


def wish_to_cancel(sessions):
    with sessions.begin() as session:
        for job in session.query(Job).filter(Job.state == "running"):
            jobs.request_cancel(session, "default", job.id)


def ended(sessions, job_id):
    job = read_job(sessions, job_id)
    return job.state, job.error_code


def test_a_job_keeps_what_its_last_step_said(runner, sessions):
    job_id = add_job(sessions)
    runner.run_next()
    progress = read_job(sessions, job_id).progress
    assert (progress["phase"], len(progress["handles"]), progress["max_iterations"]) == ("upload", 1, 10)


@pytest.mark.parametrize("points", [DOCUMENT["points"], []])
def test_a_wish_to_cancel_is_heard_in_the_silent_phases(runner, sessions, points):
    job_id = add_job(sessions, points=points)
    job = runner.claim()
    wish_to_cancel(sessions)
    runner.run(job)
    assert ended(sessions, job_id) == ("canceled", None)


def test_a_worker_that_ends_claims_nothing_and_passes_the_message_on(settings, sessions, storage, queue):
    job_id, drain = add_job(sessions), Drain()
    drain.ask()
    Runner(settings, sessions, storage, queue, drain).run_next()
    assert (read_job(sessions, job_id).state, queue.count_messages("default")) == ("queued", 1)


def test_a_job_handed_back_has_not_failed(settings, sessions, storage, queue):
    job_id, drain = add_job(sessions), Drain()
    runner = Runner(settings.model_copy(update={"drain_grace_s": 0.0}), sessions, storage, queue, drain)
    job = runner.claim()
    drain.ask()
    runner.run(job)
    waiting = read_job(sessions, job_id)
    assert (waiting.state, waiting.attempt, waiting.failures, queue.count_messages("default")) == ("queued", 1, 0, 1)


def test_a_posted_mask_that_is_gone_fails_the_job(runner, sessions):
    job_id = add_job(sessions)
    with sessions.begin() as session:
        job = session.get(Job, job_id)
        job.spec = job.spec | {"movable": Movable(upload="0" * 64).model_dump(mode="json")}
    runner.run_next()
    assert ended(sessions, job_id) == ("failed", "input_missing")


def test_a_broken_manifest_fails_the_job(settings, sessions, storage, queue, tmp_path):
    job_id = add_job(sessions)
    Runner(settings.model_copy(update={"checkpoints": tmp_path}), sessions, storage, queue).run_next()
    assert ended(sessions, job_id) == ("failed", "manifest_invalid")


def test_an_attempt_that_breaks_down_is_given_up_at_once_with_its_reason(settings, sessions, queue):
    job_id = add_job(sessions)
    restless = settings.model_copy(update={"retry_delay_s": 0.0})
    runner = Runner(restless, sessions, BrokenStorage(ZeroDivisionError("division by zero")), queue)
    for _ in range(settings.max_attempts):
        runner.run_next()
    job = read_job(sessions, job_id)
    assert (job.state, job.failures) == ("failed", settings.max_attempts)
    assert job.error_message.endswith("the last one by ZeroDivisionError: division by zero")


def test_while_the_store_is_away_the_lease_decides(settings, sessions, queue):
    job_id = add_job(sessions)
    impatient = settings.model_copy(update={"patience_s": 0.0})
    with pytest.raises(StorageUnavailable):
        Runner(impatient, sessions, BrokenStorage(StorageUnavailable("away")), queue).run_next()
    assert ended(sessions, job_id) == ("running", None)


def test_a_job_waits_for_a_store_that_comes_back(settings, sessions, storage, queue):
    job_id = add_job(sessions)
    flaky = FlakyStorage(storage, failures=3)
    Runner(settings, sessions, flaky, queue).run_next()
    job = read_job(sessions, job_id)
    assert (job.state, job.attempt, flaky.failures) == ("succeeded", 1, 0)


def test_an_outcome_waits_for_a_database_that_comes_back(settings, sessions, storage, queue):
    job_id, flaky = add_job(sessions), BrokenSessions(sessions, failures=0)
    runner = Runner(settings, flaky, storage, queue)
    job, outcome = runner.claim(), AttemptOutcome(state=JobState.CANCELED)
    flaky.failures = 3
    runner.finish(job, outcome)
    assert (ended(sessions, job_id), flaky.failures) == (("canceled", None), 0)


def test_a_checkpoint_that_cannot_be_read_begins_the_job_anew(runner, sessions, storage):
    for checkpoint in (b"no safetensors", None):
        job_id = add_job(sessions)
        key = artifact_key("default", job_id, 1, "checkpoint/00001.safetensors")
        if checkpoint is not None:
            storage.put(key, checkpoint, "application/octet-stream")
        with sessions.begin() as session:
            session.get(Job, job_id).checkpoint = {"attempt": 1, "key": key, "names": ["result.png"]}
        runner.run_next()
        assert ended(sessions, job_id) == ("succeeded", None)


@pytest.mark.parametrize(("checkpoint_s", "saves"), [(1000.0, False), (0.001, True)])
def test_a_job_shorter_than_the_time_between_two_checkpoints_saves_none(
    settings, sessions, storage, queue, monkeypatch, checkpoint_s, saves
):
    saved = []
    monkeypatch.setattr(attempts, "save_resume_point", lambda *given: saved.append(given))
    job_id = add_job(sessions)
    Runner(settings.model_copy(update={"checkpoint_s": checkpoint_s}), sessions, storage, queue).run_next()
    assert (ended(sessions, job_id), bool(saved)) == (("succeeded", None), saves)


def test_a_job_that_has_spent_its_time_in_earlier_attempts_fails(settings, sessions, storage, queue, monkeypatch):
    job_id = add_job(sessions, run_timeout_s=100)
    runner = Runner(settings.model_copy(update={"drain_grace_s": 0.0}), sessions, storage, queue)
    job = runner.claim()
    runner.draining.ask()
    monkeypatch.setattr(Attempt, "spent_s", lambda _: 99.9999)
    runner.run(job)
    assert read_job(sessions, job_id).checkpoint["attempt"] == 1
    monkeypatch.undo()
    Runner(settings, sessions, storage, queue).run_next()
    assert ended(sessions, job_id) == ("failed", "timeout")


def test_a_lease_outlives_a_database_that_is_away_for_a_moment(sessions):
    job_id = add_job(sessions)
    with sessions.begin() as session:
        claim(session, Claimer(worker="w", lease=timedelta(seconds=2)))
    flaky = BrokenSessions(sessions, failures=0)
    lease = Lease(flaky, job_id, 1, Pace(lease_s=2, beat_s=0.05, progress_interval_s=0))
    with lease.silent("load", limit_s=10):
        flaky.failures = 3
        while flaky.failures:
            time.sleep(0.01)
    flaky.failures = 1
    assert not lease.progress({"iteration": 1}).cancel
    assert not lease.progress({"iteration": 2}).cancel
    assert read_job(sessions, job_id).progress == {"phase": "load", "iteration": 2}


def test_a_lease_ends_with_a_database_that_stays_away(sessions):
    job_id = add_job(sessions)
    with sessions.begin() as session:
        claim(session, Claimer(worker="w", lease=timedelta(seconds=2)))
    lease = Lease(BrokenSessions(sessions, failures=10**9), job_id, 1, Pace(lease_s=0, beat_s=9, progress_interval_s=0))
    with pytest.raises(OperationalError):
        lease.progress({})


def test_a_phase_that_hangs_loses_its_lease(sessions):
    job_id = add_job(sessions)
    with sessions.begin() as session:
        claim(session, Claimer(worker="w", lease=timedelta(seconds=1)))
    lease = Lease(sessions, job_id, 1, Pace(lease_s=0.3, beat_s=0.05, progress_interval_s=0))
    with pytest.raises(LeaseLost), hanging(lease, sessions):  # the last beat may meet it already
        lease.progress({})


@contextmanager
def hanging(lease, sessions):
    """After a silent phase that lasted longer than it may."""
    with lease.silent("load", limit_s=0.2):
        until_requeued(sessions)
    yield


def until_requeued(sessions):
    """Sweep until the lease has run out."""
    while True:
        with sessions.begin() as session:
            if attempts.requeue_expired_leases(session, RetryPolicy(max_attempts=3, delay_s=0, delay_limit_s=0)) == (1, 0):
                return


def breaking_down(monkeypatch, error, *, frames_at_a_time):
    """Rendering that many frames at once, or more, raises."""
    render = ArtifactWriter.render_waiting

    def render_or_break(recording):
        if recording.group >= frames_at_a_time:
            raise error
        render(recording)

    monkeypatch.setattr(ArtifactWriter, "render_waiting", render_or_break)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_short_of_memory_a_job_is_tried_once_more_with_less(runner, sessions, monkeypatch, error):
    job_id = add_job(sessions)
    breaking_down(monkeypatch, error, frames_at_a_time=2)
    runner.run_next()
    job = read_job(sessions, job_id)
    assert (job.state, job.attempt, job.failures) == ("succeeded", 1, 0)


def test_a_job_too_large_for_the_memory_fails_and_the_next_one_runs(runner, sessions, monkeypatch):
    job_id = add_job(sessions)
    with monkeypatch.context() as scarce:
        breaking_down(scarce, OUT_OF_MEMORY[0], frames_at_a_time=1)
        runner.run_next()
    assert ended(sessions, job_id) == ("failed", "out_of_memory")
    assert ErrorCode.OUT_OF_MEMORY.retryable
    runner.run_next()
    good = add_job(sessions)
    runner.run_next()
    assert ended(sessions, good) == ("succeeded", None)


def test_short_of_memory_an_attempt_that_lost_its_job_does_not_take_its_successors_place(runner, sessions, monkeypatch):
    job_id = add_job(sessions)
    job = runner.claim()
    breaking_down(monkeypatch, OUT_OF_MEMORY[0], frames_at_a_time=2)
    clear = runner.models.clear

    def lose_the_job():
        clear()
        with sessions.begin() as session:
            session.get(Job, job_id).attempt = 2

    monkeypatch.setattr(runner.models, "clear", lose_the_job)
    with pytest.raises(LeaseLost):
        runner.run(job)
    assert ended(sessions, job_id) == ("running", None)


def test_a_process_whose_device_failed_ends_after_it_has_given_the_job_up(runner, sessions, monkeypatch):
    job_id, codes = add_job(sessions), []
    breaking_down(monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered"), frames_at_a_time=1)
    monkeypatch.setattr("worker.execution.runner.os._exit", codes.append)
    runner.run_next()
    assert (codes, read_job(sessions, job_id).failures) == ([1], 1)


def test_a_checkpoint_of_another_model_is_not_gone_on_from(runner, sessions, monkeypatch):
    job_id = add_job(sessions)
    runner.settings = runner.settings.model_copy(update={"drain_grace_s": 0.0})
    job = runner.claim()
    runner.draining.ask()
    runner.run(job)
    key = read_job(sessions, job_id).checkpoint["key"]
    data = runner.storage.get(key)
    with pytest.raises(ResumeStateUnreadable, match="it is of"):
        ResumeState.decode(data, "another model")


def test_a_generator_that_draws_nothing_but_nan_fails_the_job_and_the_next_one_runs(runner, sessions, monkeypatch):
    job_id, healthy = add_job(sessions), runner.models.get
    sick = tiny_generator()
    sick.synthesis.b4.const.data.fill_(torch.nan)
    monkeypatch.setattr(runner.models, "get", lambda *_: sick)
    runner.run_next()
    assert ended(sessions, job_id) == ("failed", "diverged")
    monkeypatch.setattr(runner.models, "get", healthy)
    good = add_job(sessions)
    runner.run_next()
    assert ended(sessions, good) == ("succeeded", None)


def test_a_worker_says_what_it_does(runner, sessions):
    add_job(sessions)
    job = runner.claim()
    with sessions() as session:
        busy = session.query(Worker).one()
    assert (busy.name, busy.pool, busy.models, busy.job_id) == (runner.name, "default", [], job.id)
    runner.run(job)
    runner.run_next()
    runner.draining.ask()
    runner.run_next()
    with sessions() as session:
        assert session.query(Worker).all() == []
