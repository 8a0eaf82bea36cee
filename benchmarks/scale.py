"""Whether twice the workers do twice the work, and what the queue adds to a job.

The workers are real processes with real servers; only their engine is a stand-in that sleeps, so that two cores suffice for
eight of them: `python -m benchmarks.scale NAME` is such a worker. No reconciler runs: it would hide lost messages.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from dragqueue_client import Client
from sqlalchemy import delete, func, select, text

from cli.errors import CommandError
from cli.keys import local_key
from cli.settings import PREFIX, read_settings
from embedded.processes import start
from embedded.servers import free_port, speaks_http
from embedded.service import prepare, start_part
from embedded.stack import Stack, local_stack
from jobs.database import make_sessions
from jobs.models.manifest import ModelManifest
from jobs.queue import jobs as job_rows
from jobs.queue.broker import Broker
from jobs.settings import Settings
from jobs.spec.validation import check_submission
from jobs.states import JobState
from jobs.tables import DEFAULT_TENANT, Job, Worker
from worker.app import main as serve
from worker.execution.drain import Drain

if TYPE_CHECKING:
    from worker.execution.runner import Runner

MODEL = "demo-faces"
START_LIMIT_S = 180.0  # eight workers import PyTorch at a time
STANDSTILL_S = 60.0  # without any job ending: something is lost
POLL_S = 0.2
REST_S = 0.1  # until a worker that has ended a job listens again
FIGURES = text("""
    WITH run AS (
        SELECT *, extract(epoch FROM finished_at - started_at) AS took_s, extract(epoch FROM
            lead(started_at) OVER (PARTITION BY worker ORDER BY started_at) - finished_at) AS idle_s,
            (SELECT count(*) FROM artifacts WHERE artifacts.job_id = jobs.id AND artifacts.attempt = jobs.attempt) AS objects
        FROM jobs WHERE batch = :batch
    )
    SELECT extract(epoch FROM max(finished_at) - min(started_at))::float AS seconds, count(DISTINCT worker) AS workers,
        count(*) FILTER (WHERE state <> 'succeeded' OR attempt <> 1) AS not_once,
        count(*) FILTER (WHERE objects <> :objects) AS incomplete,
        (percentile_cont(0.5) WITHIN GROUP (ORDER BY took_s))::float AS job_s,
        1000 * coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY idle_s), 0)::float AS idle_ms
    FROM run
""")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the stand-in does for one job."""

    seconds: float = 2.0
    steps: int = 20
    objects: int = 10


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """One run of the same jobs; times are the database's, from the first claim to the last end."""

    workers: int
    jobs: int
    seconds: float
    job_s: float  # of one job, from claim to end: median
    idle_ms: float  # of one worker, from a job's end to its next claim: median
    not_once: int  # jobs that did not succeed at their first attempt
    incomplete: int  # jobs without all their objects

    @property
    def per_second(self) -> float:
        return self.jobs / self.seconds


@dataclass(frozen=True, kw_only=True)
class Delay:
    """From a submission to its start on an idle worker; one clock, of this machine."""

    from_request_ms: float  # when the client began to post
    from_row_ms: float  # when the API's transaction began


class Bench:
    """The servers' clients."""

    def __init__(self, settings: Settings) -> None:
        self.sessions = make_sessions(settings.database_url)
        self.queue = Broker(settings.redis_url)
        self.manifest = ModelManifest.load(settings.checkpoints)

    def submit(self, count: int, work: Work) -> UUID:
        """Add jobs in one transaction and wake a worker for each; returns their batch."""
        batch, submission = uuid4(), check_submission(document(work), self.manifest)
        with self.sessions.begin() as session:
            for _ in range(count):
                job_rows.add(session, uuid4(), DEFAULT_TENANT, submission).batch = batch
        for _ in range(count):
            self.queue.send_wake_up(submission.pool)
        return batch

    def wait(self, batch: UUID, count: int, seen: Callable[[int], object]) -> None:
        """Until all have ended. Raises CommandError when none ends for long."""
        ended, since = 0, time.monotonic()
        while ended < count:
            now = self.count(Job.batch == batch, Job.finished_at.is_not(None))
            if now > ended:
                ended, since = now, time.monotonic()
                seen(ended)
            if time.monotonic() - since > STANDSTILL_S:
                raise CommandError(f"{count - ended} of {count} jobs wait and none has ended for {STANDSTILL_S:g} s")
            time.sleep(POLL_S)

    def count(self, *where: Any) -> int:
        with self.sessions() as session:
            return session.scalar(select(func.count()).where(*where)) or 0

    def warm_up(self, workers: int) -> None:
        """Until every worker has said that it is there, has run a job and is idle."""
        until = time.monotonic() + START_LIMIT_S
        while self.count(Worker.name.is_not(None)) < workers:
            if time.monotonic() > until:
                raise CommandError(f"{workers} workers were not ready within {START_LIMIT_S:g} s")
            time.sleep(POLL_S)
        self.wait(self.submit(workers, Work(seconds=1)), workers, lambda _: None)
        time.sleep(REST_S)

    def figures(self, batch: UUID, jobs: int, work: Work) -> Throughput:
        with self.sessions() as session:
            row = session.execute(FIGURES, {"batch": batch, "objects": work.objects}).one()
        return Throughput(jobs=jobs, **row._mapping)


def start_workers(stack: Stack, bench: Bench, count: int, cleanup: ExitStack) -> None:
    """Returns when all are idle."""
    with bench.sessions.begin() as session:
        session.execute(delete(Worker))  # those of an earlier run have ended
    for number in range(count):
        name, command = f"stand-in-{number}", [sys.executable, "-m", "benchmarks.scale", str(number)]
        child = start(name, command, log=stack.logs / f"{name}.log", environment=stack.environment)
        cleanup.callback(child.stop)
    bench.warm_up(count)


@contextmanager
def prepared_stack() -> Iterator[Stack]:
    """Servers of our own, whatever the environment names; they write as durably as those of `dragqueue up`."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with tempfile.TemporaryDirectory(prefix="dragqueue-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        with local_stack(Path(folder), given | {f"{PREFIX}THREADS": "1"}) as stack:
            prepare(stack.settings())
            yield stack


def measure_throughput(stack: Stack, workers: int, jobs: int, work: Work, seen: Callable[[int], object]) -> Throughput:
    bench = Bench(stack.settings())
    with ExitStack() as cleanup:
        start_workers(stack, bench, workers, cleanup)
        batch = bench.submit(jobs, work)
        bench.wait(batch, jobs, seen)
    return bench.figures(batch, jobs, work)


def measure_delays(stack: Stack, jobs: int) -> Iterator[Delay]:
    """Post jobs to the API one after another, each when the one worker is idle."""
    bench, work, port = Bench(stack.settings()), Work(seconds=0, steps=1, objects=0), free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as cleanup:
        api = start_part(stack, "api", ["--port", str(port)], cleanup)
        start_workers(stack, bench, 1, cleanup)
        api.wait_until(lambda: speaks_http(f"{url}/healthz"), START_LIMIT_S)
        client = cleanup.enter_context(Client(url, local_key(stack)))
        for _ in range(jobs):
            yield measure_delay(bench, client, work)


def measure_delay(bench: Bench, client: Client, work: Work) -> Delay:
    began = time.time()
    job_id = client.submit(document(work)).id
    while not bench.count(Job.id == job_id, Job.state == JobState.SUCCEEDED):
        time.sleep(REST_S)
    time.sleep(REST_S)
    with bench.sessions() as session:
        job = session.get_one(Job, job_id)
    assert job.started_at is not None
    started = job.started_at.timestamp()
    return Delay(from_request_ms=1000 * (started - began), from_row_ms=1000 * (started - job.created_at.timestamp()))


def document(work: Work) -> dict[str, Any]:
    return {"model": MODEL, "source": {"seed": 0}, "metadata": asdict(work)}


def make_stand_in(settings: Settings, drain: Drain) -> "Runner":
    """Imports PyTorch: to be called in the child."""
    from benchmarks.stand_in import StandIn

    return StandIn.from_settings(settings, drain)


if __name__ == "__main__":
    serve(read_settings(os.environ), sys.argv[1], make_stand_in)
