"""One attempt at a time, in this process: how each kind of end is recorded."""

import time
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, repeat

import pytest
import torch
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from jobs.errors import ErrorCode, LeaseLost, StorageUnavailable
from jobs.models.manifest import ModelManifest
from jobs.queue import attempts, jobs
from jobs.queue.attempts import AttemptOutcome
from jobs.queue.claims import Claimer, claim
from jobs.queue.retry_policy import RetryPolicy
from jobs.spec.job_spec import Movable
from jobs.states import JobState
from jobs.storage import artifacts
from jobs.storage.objects import artifact_key
from jobs.tables import Job, Worker
from tests.generators import tiny_generator
from tests.manifests import add_model, write_tiny_checkpoints
from tests.services.jobs import DOCUMENT, add_job, read_job
from worker.edit.artifacts import ArtifactWriter
from worker.execution.drain import Drain
from worker.execution.lease import Lease, LeaseTimes
from worker.execution.model_cache import ModelCache
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


class WatchedStorage:
    """A store that notes the keys of what it is given."""

    def __init__(self, storage):
        self.storage = storage
        self.keys = []

    def put(self, key, data, media_type):
        self.keys.append(key)
        self.storage.put(key, data, media_type)

    def __getattr__(self, name):
        return getattr(self.storage, name)


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


def drained(settings, sessions, storage, queue, **seams):
    """Return a runner that was asked to end and has no time left, and the job that it has claimed."""
    runner = Runner(settings.model_copy(update={"drain_grace_s": 0.0}), sessions, storage, queue, **seams)
    job = runner.claim_job()
    runner.drain.request()
    return runner, job


def request_cancel(sessions):
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
def test_a_request_to_cancel_is_heard_in_the_phases_without_steps(runner, sessions, points):
    job_id = add_job(sessions, points=points)
    job = runner.claim_job()
    request_cancel(sessions)
    runner.process_job(job)
    assert ended(sessions, job_id) == ("canceled", None)


def test_a_worker_that_ends_claims_nothing_and_passes_the_message_on(settings, sessions, storage, queue):
    job_id, drain = add_job(sessions), Drain()
    drain.request()
    Runner(settings, sessions, storage, queue, drain).run_next()
    assert (read_job(sessions, job_id).state, queue.count_messages("default")) == ("queued", 1)


def test_a_job_handed_back_has_not_failed(settings, sessions, storage, queue):
    job_id = add_job(sessions)
    runner, job = drained(settings, sessions, storage, queue)
    runner.process_job(job)
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


def test_an_entry_that_is_not_valid_fails_its_own_jobs_alone_and_the_error_names_no_folder(
    settings, sessions, storage, queue, tmp_path, caplog
):
    folder = write_tiny_checkpoints(tmp_path)
    manifest = folder / "manifest.toml"
    manifest.write_text(manifest.read_text().replace("[models.damaged]", '[models.other]\nlicence = "\\ud83d"'))
    runner = Runner(settings.model_copy(update={"checkpoints": folder}), sessions, storage, queue)
    broken, good = add_job(sessions, model="other"), add_job(sessions)
    runner.run_next()
    runner.run_next()
    assert ended(sessions, broken) == ("failed", "manifest_invalid")
    assert ended(sessions, good)[0] == "succeeded"
    assert str(folder) not in read_job(sessions, broken).error_message
    assert str(manifest) in caplog.text


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
    job, outcome = runner.claim_job(), AttemptOutcome(state=JobState.CANCELED)
    flaky.failures = 3
    runner.finish(job, outcome)
    assert (ended(sessions, job_id), flaky.failures) == (("canceled", None), 0)


def test_a_resume_state_that_cannot_be_read_starts_the_job_from_the_beginning(runner, sessions, storage):
    for state in (b"no safetensors", None):
        job_id = add_job(sessions)
        key = artifact_key("default", job_id, 1, "checkpoint/00001.safetensors")
        if state is not None:
            storage.put(key, state, "application/octet-stream")
        with sessions.begin() as session:
            session.get(Job, job_id).resume_point = {"attempt": 1, "key": key, "names": ["result.png"]}
        runner.run_next()
        assert ended(sessions, job_id) == ("succeeded", None)


@pytest.mark.parametrize(("checkpoint_s", "saves"), [(1000.0, False), (0.001, True)])
def test_a_job_shorter_than_the_time_between_two_resume_states_saves_none(
    settings, sessions, storage, queue, checkpoint_s, saves
):
    watched, job_id = WatchedStorage(storage), add_job(sessions)
    Runner(settings.model_copy(update={"checkpoint_s": checkpoint_s}), sessions, watched, queue).run_next()
    saved = any("/checkpoint/" in key for key in watched.keys)
    assert (ended(sessions, job_id), saved) == (("succeeded", None), saves)


def test_a_job_that_has_spent_its_time_in_earlier_attempts_fails(settings, sessions, storage, queue):
    job_id = add_job(sessions, run_timeout_s=100)
    seconds = chain([0.0], repeat(99.9999))
    runner, job = drained(settings, sessions, storage, queue, clock=lambda: next(seconds))
    runner.process_job(job)
    assert read_job(sessions, job_id).resume_point["attempt"] == 1
    Runner(settings, sessions, storage, queue).run_next()
    assert ended(sessions, job_id) == ("failed", "timeout")


def test_a_lease_outlives_a_database_that_is_away_for_a_moment(sessions):
    job_id = add_job(sessions)
    with sessions.begin() as session:
        claim(session, Claimer(worker="w", lease=timedelta(seconds=2)))
    flaky = BrokenSessions(sessions, failures=0)
    lease = Lease(flaky, job_id, 1, LeaseTimes(lease_s=2, beat_s=0.05, progress_interval_s=0))
    with lease.renewed_in_background("load", limit_s=10):
        flaky.failures = 3
        while flaky.failures:
            time.sleep(0.01)
    flaky.failures = 1
    assert not lease.report_progress({"iteration": 1}).cancel
    assert not lease.report_progress({"iteration": 2}).cancel
    assert read_job(sessions, job_id).progress == {"phase": "load", "iteration": 2}


def test_a_lease_ends_with_a_database_that_stays_away(sessions):
    job_id = add_job(sessions)
    with sessions.begin() as session:
        claim(session, Claimer(worker="w", lease=timedelta(seconds=2)))
    lease = Lease(BrokenSessions(sessions, failures=10**9), job_id, 1, LeaseTimes(lease_s=0, beat_s=9, progress_interval_s=0))
    with pytest.raises(OperationalError):
        lease.report_progress({})


def test_a_phase_that_hangs_loses_its_lease(sessions):
    job_id = add_job(sessions)
    with sessions.begin() as session:
        claim(session, Claimer(worker="w", lease=timedelta(seconds=1)))
    lease = Lease(sessions, job_id, 1, LeaseTimes(lease_s=0.3, beat_s=0.05, progress_interval_s=0))
    with pytest.raises(LeaseLost), hanging(lease, sessions):  # the last beat may meet it already
        lease.report_progress({})


@contextmanager
def hanging(lease, sessions):
    """After a phase without steps that lasted longer than it may."""
    with lease.renewed_in_background("load", limit_s=0.2):
        until_requeued(sessions)
    yield


def until_requeued(sessions):
    """Sweep until the lease has run out."""
    while True:
        with sessions.begin() as session:
            if attempts.requeue_expired_leases(session, RetryPolicy(max_attempts=3, delay_s=0, delay_limit_s=0)) == (1, 0):
                return


def writer_that_breaks(error, *, frames_at_a_time):
    """Return writers that raise where they render that many frames at once, or more."""

    class BreakingWriter(ArtifactWriter):
        def render_pending_frames(self):
            if self.group_size >= frames_at_a_time:
                raise error
            super().render_pending_frames()

    return BreakingWriter


class GivenModels(ModelCache):
    """Models of which the first ones that are asked for are others than the manifest's."""

    def __init__(self, *generators):
        super().__init__(torch.device("cpu"), 10**9)
        self.generators = list(generators)

    def get(self, manifest, model):
        return self.generators.pop(0) if self.generators else super().get(manifest, model)


class WatchedModels(ModelCache):
    """Models that call a function once they have left the memory."""

    def __init__(self, on_clear):
        super().__init__(torch.device("cpu"), 10**9)
        self.on_clear = on_clear

    def clear(self):
        super().clear()
        self.on_clear()


@pytest.fixture
def make_runner(settings, sessions, storage, queue):
    """Put a runner together with some of its parts replaced."""

    def make(**seams):
        return Runner(settings, sessions, storage, queue, **seams)

    return make


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_short_of_memory_a_job_is_tried_once_more_with_less(make_runner, sessions, error):
    job_id = add_job(sessions)
    make_runner(make_writer=writer_that_breaks(error, frames_at_a_time=2)).run_next()
    job = read_job(sessions, job_id)
    assert (job.state, job.attempt, job.failures) == ("succeeded", 1, 0)


def test_a_job_too_large_for_the_memory_fails_and_the_next_one_runs(make_runner, sessions):
    job_id, breaking = add_job(sessions), writer_that_breaks(OUT_OF_MEMORY[0], frames_at_a_time=1)
    writers = chain([breaking] * 2, repeat(ArtifactWriter))
    runner = make_runner(make_writer=lambda *arguments, **options: next(writers)(*arguments, **options))
    runner.run_next()
    assert ended(sessions, job_id) == ("failed", "out_of_memory")
    assert ErrorCode.OUT_OF_MEMORY.retryable
    good = add_job(sessions)
    runner.run_next()
    assert ended(sessions, good) == ("succeeded", None)


def test_short_of_memory_an_attempt_that_lost_its_job_does_not_take_its_successors_place(make_runner, sessions, storage):
    job_id = add_job(sessions)

    def lose_the_job():
        with sessions.begin() as session:
            session.get(Job, job_id).attempt = 2

    writer = writer_that_breaks(OUT_OF_MEMORY[0], frames_at_a_time=2)
    make_runner(models=WatchedModels(lose_the_job), make_writer=writer).run_next()
    assert ended(sessions, job_id) == ("running", None)
    assert list(storage.keys(artifact_key("default", job_id, 2, ""))) == []


def test_a_process_whose_device_failed_ends_after_it_has_given_the_job_up(make_runner, sessions):
    job_id, codes = add_job(sessions), []
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    make_runner(make_writer=writer_that_breaks(error, frames_at_a_time=1), exit_process=codes.append).run_next()
    assert (codes, read_job(sessions, job_id).failures) == ([1], 1)


def test_a_device_that_fails_while_memory_is_freed_gives_the_job_up_too(make_runner, sessions):
    job_id, codes = add_job(sessions), []

    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    writer = writer_that_breaks(OUT_OF_MEMORY[0], frames_at_a_time=2)
    make_runner(models=WatchedModels(fail), make_writer=writer, exit_process=codes.append).run_next()
    assert (codes, read_job(sessions, job_id).failures) == ([1], 1)


def other_tiny_model(folder):
    """Return a checkpoints folder whose tiny model has other weights."""
    generator = tiny_generator()
    generator.synthesis.b4.const.data.mul_(0.9)
    (folder / "manifest.toml").write_text("[models]\n")
    ModelManifest(folder, {}).add(add_model(folder, "tiny", generator))
    return folder


@pytest.mark.parametrize("same_model", [True, False])
def test_the_next_attempt_goes_on_from_a_resume_state_of_its_own_model_alone(
    settings, sessions, storage, queue, tmp_path, same_model
):
    job_id = add_job(sessions)
    runner, job = drained(settings, sessions, storage, queue)
    runner.process_job(job)
    assert read_job(sessions, job_id).resume_point["attempt"] == 1
    checkpoints = settings.checkpoints if same_model else other_tiny_model(tmp_path)
    Runner(settings.model_copy(update={"checkpoints": checkpoints}), sessions, storage, queue).run_next()
    done = read_job(sessions, job_id)
    assert (done.state, done.attempt) == ("succeeded", 2)
    with sessions() as session:
        source = artifacts.get(session, done, "source.png").key
    assert source == artifact_key("default", job_id, 1 if same_model else 2, "source.png")


def test_a_generator_that_draws_nothing_but_nan_fails_the_job_and_the_next_one_runs(make_runner, sessions):
    job_id = add_job(sessions)
    sick = tiny_generator()
    sick.synthesis.b4.const.data.fill_(torch.nan)
    runner = make_runner(models=GivenModels(sick))
    runner.run_next()
    assert ended(sessions, job_id) == ("failed", "diverged")
    good = add_job(sessions)
    runner.run_next()
    assert ended(sessions, good) == ("succeeded", None)


@pytest.mark.parametrize(("earlier", "expected_s"), [(0, 100), (1, 200), (2, 300), (40, 300)])
def test_a_job_rests_after_each_failure_twice_as_long_give_or_take_a_fifth(sessions, earlier, expected_s):
    job_id = add_job(sessions)
    with sessions.begin() as session:
        claim(session, Claimer(worker="w", lease=timedelta(seconds=2)))
        session.get(Job, job_id).failures = earlier
    with sessions.begin() as session:
        attempts.release(session, job_id, 1, "it broke", RetryPolicy(max_attempts=99, delay_s=100, delay_limit_s=300))
        rest = func.extract("epoch", Job.not_before - func.clock_timestamp())
        rest_s = session.scalar(select(rest).where(Job.id == job_id))
    assert 0.8 * expected_s - 5 < rest_s <= 1.2 * expected_s  # the clock has gone on since


def test_a_worker_says_what_it_does(runner, sessions):
    add_job(sessions)
    job = runner.claim_job()
    with sessions() as session:
        busy = session.query(Worker).one()
    assert (busy.name, busy.pool, busy.models, busy.job_id) == (runner.name, "default", [], job.id)
    runner.process_job(job)
    runner.run_next()
    runner.drain.request()
    runner.run_next()
    with sessions() as session:
        assert session.query(Worker).all() == []
