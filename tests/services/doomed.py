"""Workers that are killed at a chosen point of a job's life: seams are wrapped where the worker is put together."""

import multiprocessing
import os
import signal
from collections.abc import Callable

import torch

from jobs.queue import attempts, jobs
from jobs.queue.retry_policy import RetryPolicy
from jobs.settings import Settings
from jobs.storage.objects import Storage
from worker.execution.attempt import Attempt
from worker.execution.drain import Drain
from worker.execution.model_cache import ModelCache
from worker.execution.runner import Runner
from worker.reconciler.reconciler import Reconciler

LIMIT_S = 60
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["worker.execution.runner", "tests.services.doomed"])  # PyTorch is imported once


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: type, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Die instead of the first call for which `when` holds."""
    original = getattr(owner, name)

    def doomed(*arguments, **options):
        if when(*arguments):
            die()
        return original(*arguments, **options)

    setattr(owner, name, doomed)


def after(owner: type, name: str) -> None:
    original = getattr(owner, name)

    def doomed(*arguments, **options):
        original(*arguments, **options)
        die()

    setattr(owner, name, doomed)


def at_step(phase: str, iteration: int) -> Callable[[], None]:
    """Before an iteration is reported."""

    def reached(_, progress):
        return (progress.get("phase"), progress.get("iteration")) == (phase, iteration)

    return lambda: before(Attempt, "report_progress", reached)


def at_object(part: str) -> Callable[[], None]:
    """Before an object whose key contains this is stored."""
    return lambda: before(Storage, "put", lambda _, key, *__: part in key)


def draining() -> None:
    """The worker is asked to end in the middle, and dies before it has handed its job back."""
    original = Attempt.report_progress

    def report_progress(attempt, progress):
        if progress.get("iteration") == 5:
            attempt.context.drain.request()
        return original(attempt, progress)

    Attempt.report_progress = report_progress
    before(Runner, "hand_back")


POINTS: dict[str, Callable[[], None]] = {
    "after the claim": lambda: before(Runner, "execute_job"),
    "mid-load": lambda: before(ModelCache, "get"),
    "mid-projection": at_step("projection", 5),
    "between projection and tuning": at_step("tuning", 0),
    "mid-tuning": at_step("tuning", 5),
    "between tuning and drag": lambda: before(Attempt, "drag"),
    "at the first step": at_step("drag", 0),
    "mid-drag": at_step("drag", 9),
    "while saving a checkpoint": at_object("checkpoint/00006"),
    "between a checkpoint and its row": lambda: before(
        attempts, "save_resume_point", lambda *given: "checkpoint/00006" in given[-1].key
    ),
    "while storing a frame": at_object("frames/00006"),
    "mid-upload": at_object("result.png"),
    "between upload and row": lambda: before(
        attempts, "add_artifacts", lambda *given: "result.png" in [stored.name for stored in given[-1]]
    ),
    "between upload and commit": lambda: before(Runner, "finish"),
    "between the outcome and its commit": lambda: after(attempts, "finish"),
    "before an old checkpoint is deleted": lambda: before(Storage, "remove"),
    "after the commit": lambda: after(Runner, "write"),
    "mid-drain": draining,
}
RECONCILER_POINTS: dict[str, Callable[[], None]] = {
    "between two moves of a sweep": lambda: before(jobs, "expire"),
    "between a sweep and its messages": lambda: before(Reconciler, "send_wake_ups"),
}


def run_worker(settings: Settings, point: str | None = None) -> int | None:
    """A worker process that looks for one job; returns its exit code, -9 when it was killed."""
    return end_of(SPAWN.Process(target=work, args=(settings, point)))


def run_reconciler(settings: Settings, point: str | None = None) -> int | None:
    return end_of(SPAWN.Process(target=sweep, args=(settings, point)))


def end_of(process: multiprocessing.Process) -> int | None:
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def work(settings: Settings, point: str | None) -> None:
    torch.set_num_threads(1)
    if point is not None:
        POINTS[point]()
    Runner.from_settings(settings, Drain()).run_next()


def sweep(settings: Settings, point: str | None) -> None:
    from jobs.database import make_sessions
    from jobs.queue.broker import Broker

    if point is not None:
        RECONCILER_POINTS[point]()
    Reconciler(make_sessions(settings.database_url), Broker(settings.redis_url), RetryPolicy.from_settings(settings)).sweep()
