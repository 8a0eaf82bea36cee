"""Measures how throughput grows with the number of workers, and what the queue adds to a job.

The workers are real processes with real servers (scale_worker); only their engine sleeps, so that two cores suffice for eight of
them. No reconciler runs: it would hide lost messages.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from dragqueue_client import Client
from sqlalchemy import delete, func, select, text, update

from benchmarks.child_programs import checkout_environment, module_command
from benchmarks.synthetic_work import SyntheticWork
from embedded.errors import StackError
from embedded.keys import local_key
from embedded.processes import start
from embedded.servers import free_port, speaks_http
from embedded.service import prepare, start_part
from embedded.stack import Stack, local_stack
from jobs.database import make_sessions
from jobs.environment import ENV_PREFIX
from jobs.models.manifest import ModelManifest
from jobs.queue import jobs as job_rows
from jobs.queue.broker import Broker
from jobs.settings import Settings
from jobs.spec.validation import check_submission
from jobs.states import JobState
from jobs.tables import DEFAULT_TENANT, Job, Worker

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
class Throughput:
    """The figures of one run of equal jobs; times are the database's, from the first claim to the last end."""

    workers: int
    jobs: int
    seconds: float
    job_s: float  # of one job, from claim to end: median
    idle_ms: float  # of one worker, from a job's end to its next claim: median
    not_once: int  # jobs that did not succeed at their first attempt
    incomplete: int  # jobs without all their objects

    @property
    def per_second(self) -> float:
        """Return the jobs that ended in a second."""
        return self.jobs / self.seconds


@dataclass(frozen=True, kw_only=True)
class Delay:
    """The time from a submission to its start on an idle worker, by this machine's one clock."""

    from_request_ms: float  # when the client began to post
    from_row_ms: float  # when the API's transaction began


class ScaleBench:
    """Submits synthetic jobs straight to the database and waits for the workers that run them."""

    def __init__(self, settings: Settings) -> None:
        self.sessions = make_sessions(settings.database_url)
        self.broker = Broker(settings.redis_url)
        self.manifest = ModelManifest.load(settings.checkpoints)

    def submit(self, count: int, work: SyntheticWork) -> UUID:
        """Add jobs in one transaction and send a wake-up message for each; return their batch."""
        batch, submission = uuid4(), check_submission(job_document(work), self.manifest)
        with self.sessions.begin() as session:
            ids = [job_rows.add(session, uuid4(), DEFAULT_TENANT, submission).id for _ in range(count)]
            session.execute(update(Job).where(Job.id.in_(ids)).values(batch=batch))
        for _ in range(count):
            self.broker.send_wake_up(submission.pool)
        return batch

    def wait(self, batch: UUID, count: int, report_ended: Callable[[int], object]) -> None:
        """Wait until all jobs of the batch have ended, and report how many have whenever that grows.

        Raises:
            StackError: no job has ended for STANDSTILL_S.
        """
        ended, since = 0, time.monotonic()
        while ended < count:
            now = self.count(Job.batch == batch, Job.finished_at.is_not(None))
            if now > ended:
                ended, since = now, time.monotonic()
                report_ended(ended)
            if time.monotonic() - since > STANDSTILL_S:
                raise StackError(f"{count - ended} of {count} jobs wait and none has ended for {STANDSTILL_S:g} s")
            time.sleep(POLL_S)

    def count(self, *where: Any) -> int:
        """Return how many rows meet the conditions."""
        with self.sessions() as session:
            return session.scalar(select(func.count()).where(*where)) or 0

    def warm_up(self, workers: int) -> None:
        """Wait until every worker has registered, has run a job and is idle. Raises StackError."""
        until = time.monotonic() + START_LIMIT_S
        while self.count(Worker.name.is_not(None)) < workers:
            if time.monotonic() > until:
                raise StackError(f"{workers} workers were not ready within {START_LIMIT_S:g} s")
            time.sleep(POLL_S)
        self.wait(self.submit(workers, SyntheticWork(seconds=1)), workers, lambda _: None)
        time.sleep(REST_S)

    def read_throughput(self, batch: UUID, jobs: int, work: SyntheticWork) -> Throughput:
        """Read a batch's figures from the rows of its jobs."""
        with self.sessions() as session:
            row = session.execute(FIGURES, {"batch": batch, "objects": work.objects}).one()
        return Throughput(jobs=jobs, **row._mapping)

    def close(self) -> None:
        """Close the connections."""
        self.sessions.kw["bind"].dispose()
        self.broker.redis.close()


def start_workers(stack: Stack, bench: ScaleBench, count: int, cleanup: ExitStack) -> None:
    """Start workers that `cleanup` stops, and wait until all are idle."""
    with bench.sessions.begin() as session:
        session.execute(delete(Worker))  # those of an earlier run have ended
    environment = checkout_environment(stack.environment)
    for number in range(count):
        name, command = f"sleeping-{number}", module_command("benchmarks.scale_worker", str(number))
        child = start(name, command, log=stack.logs / f"{name}.log", environment=environment)
        cleanup.callback(child.stop)
    bench.warm_up(count)


@contextmanager
def prepared_stack() -> Iterator[Stack]:
    """Run servers of our own, whatever the environment names; they write as durably as those of `dragqueue up`."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    with tempfile.TemporaryDirectory(prefix="dragqueue-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        with local_stack(Path(folder), given | {f"{ENV_PREFIX}THREADS": "1"}) as stack:
            prepare(stack.settings())
            yield stack


def measure_throughput(
    stack: Stack, workers: int, jobs: int, work: SyntheticWork, report_ended: Callable[[int], object]
) -> Throughput:
    """Run jobs on so many workers; report how many have ended whenever that grows."""
    with ExitStack() as cleanup:
        bench = ScaleBench(stack.settings())
        cleanup.callback(bench.close)
        start_workers(stack, bench, workers, cleanup)
        batch = bench.submit(jobs, work)
        bench.wait(batch, jobs, report_ended)
        return bench.read_throughput(batch, jobs, work)


def measure_delays(stack: Stack, jobs: int) -> Iterator[Delay]:
    """Post jobs to the API one after another, each when the one worker is idle."""
    work, port = SyntheticWork(seconds=0, steps=1, objects=0), free_port()
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as cleanup:
        bench = ScaleBench(stack.settings())
        cleanup.callback(bench.close)
        api = start_part(stack, "api", ["--port", str(port)], cleanup)
        start_workers(stack, bench, 1, cleanup)
        api.wait_until(lambda: speaks_http(f"{url}/healthz"), START_LIMIT_S)
        client = cleanup.enter_context(Client(url, local_key(stack)))
        for _ in range(jobs):
            yield measure_delay(bench, client, work)


def measure_delay(bench: ScaleBench, client: Client, work: SyntheticWork) -> Delay:
    """Post one job and wait until it has succeeded and the worker rests again."""
    began = time.time()
    job_id = client.submit(job_document(work)).id
    while not bench.count(Job.id == job_id, Job.state == JobState.SUCCEEDED):
        time.sleep(REST_S)
    time.sleep(REST_S)
    with bench.sessions() as session:
        job = session.get_one(Job, job_id)
    assert job.started_at is not None
    started = job.started_at.timestamp()
    return Delay(from_request_ms=1000 * (started - began), from_row_ms=1000 * (started - job.created_at.timestamp()))


def job_document(work: SyntheticWork) -> dict[str, Any]:
    """Return the JSON of a job that asks for this work."""
    return {"model": MODEL, "source": {"seed": 0}, "metadata": asdict(work)}
