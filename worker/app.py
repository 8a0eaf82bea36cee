"""The Celery application. Its parent process only listens; PyTorch is imported in the child alone.

A message carries nothing and is acknowledged early: the claim decides what runs, the lease who owns it. How the child runs a
job is told in execution/runner.py.
"""

import ctypes
import signal
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.signals import worker_process_init, worker_shutting_down

from jobs.queue.broker import CONNECTION_OPTIONS, RUN_NEXT_TASK, queue_name
from jobs.settings import Settings
from worker.execution.drain import Drain

if TYPE_CHECKING:
    from worker.execution.runner import Runner

TIME_LIMIT_S = 90_000  # a backstop behind run_timeout_s, which may be a day
START_LIMIT_S = 120  # for a child's imports
PR_SET_PDEATHSIG = 1
OPTIONS = ["--pool=prefork", "--concurrency=1", "--without-gossip", "--without-mingle", "--loglevel=INFO"]


DRAIN = Drain()
MakeRunner = Callable[[Settings, Drain], "Runner"]


def make_runner(settings: Settings, drain: Drain) -> "Runner":
    """Return the runner of a child process; imports PyTorch."""
    from worker.execution.runner import Runner

    return Runner.from_settings(settings, drain)


def create_app(settings: Settings, make: MakeRunner = make_runner) -> Celery:
    """Return the application; its one task runs the job whose turn it is."""
    app = Celery("dragqueue", broker=settings.redis_url)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_time_limit=TIME_LIMIT_S,
        worker_proc_alive_timeout=START_LIMIT_S,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        broker_connection_retry_on_startup=True,
        broker_transport_options=CONNECTION_OPTIONS,
    )

    @app.task(name=RUN_NEXT_TASK)  # type: ignore[untyped-decorator]
    def run_next() -> None:
        signal.signal(signal.SIGTERM, drain)  # Celery's own handler exits: a signal to the whole group would kill the job
        runner(settings, make).run_next()

    return app


def main(settings: Settings, name: str, make: MakeRunner = make_runner) -> None:
    """Serve until SIGTERM; the job at hand is then finished within the grace time, or handed back to the queue.

    Args:
        name: tells the workers of one machine apart.
    """
    worker_process_init.connect(die_with_parent, weak=False)
    worker_process_init.connect(lambda **_: runner(settings, make).sign_on(), weak=False)
    worker_shutting_down.connect(drain, weak=False)
    arguments = ["worker", *OPTIONS, f"--queues={queue_name(settings.pool)}", f"--hostname={name}@%h"]
    create_app(settings, make).worker_main(arguments)


@lru_cache(maxsize=1)
def runner(settings: Settings, make: MakeRunner) -> "Runner":
    """Return the child's one runner, with clients of its own: none of them survives a fork."""
    return make(settings, DRAIN)


def die_with_parent(**_: Any) -> None:
    """Let the kernel kill this child when its parent dies: it must not go on unseen."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def drain(*_: Any, **__: Any) -> None:
    """Ask this worker to end: a handler of signals, and of Celery's."""
    DRAIN.request()
