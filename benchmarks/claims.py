"""Measures how many claims a second Postgres serves when many workers claim at once from a long queue."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from uuid import UUID

from sqlalchemy import text

from jobs.database import Sessions, make_sessions
from jobs.queue.claims import Claimer, claim

CONNECT_LIMIT_S = 120.0
LEASE = timedelta(hours=1)
FILL = text("""
    INSERT INTO jobs (id, tenant, model, spec, priority)
    SELECT gen_random_uuid(), 'tenant-' || n % :tenants, 'model-' || n % :models, '{"retain_for_s": 60}', 0
    FROM generate_series(1, :rows) AS n
""")
EMPTY = ("TRUNCATE jobs CASCADE", "DELETE FROM tenants WHERE id LIKE 'tenant-%'")

start_barrier: Barrier  # of a process of the pool: its claimers begin with all others


@dataclass(frozen=True, kw_only=True)
class QueueLoad:
    """A queue of waiting jobs and the claimers that take from it."""

    tenants: int
    rows: int = 100_000
    models: int = 4  # each claimer has one of them in memory
    claimers: int = 64  # threads, each with a connection of its own
    processes: int = 2  # that share the threads: in one, Python's lock is the limit
    seconds: float = 10.0
    analyzed: bool = True  # whether Postgres knows how long the queue is


def claim_loads(tenants: Sequence[int], rows: int, seconds: float) -> list[QueueLoad]:
    """Return two queues for each number of tenants; those without statistics come first, since TRUNCATE keeps statistics."""
    return [QueueLoad(tenants=n, rows=rows, seconds=seconds, analyzed=analyzed) for analyzed in (False, True) for n in tenants]


@dataclass
class Claims:
    """The jobs that one claimer got."""

    ids: list[UUID] = field(default_factory=list)
    empty: int = 0  # answers without a job, while jobs waited
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClaimRate:
    """The claims of all claimers of one queue."""

    load: QueueLoad
    claims: int
    seconds: float
    twice: int  # jobs that two claimers got
    empty: int  # answers without a job, while jobs waited

    @property
    def per_second(self) -> float:
        """Return the claims in a second."""
        return self.claims / self.seconds


def measure_claims(database_url: str, load: QueueLoad) -> ClaimRate:
    """Fill the queue, claim from it for a while, empty it."""
    fill_queue(database_url, load)
    try:
        parts = claim_in_processes(database_url, load)
    finally:
        run_statements(database_url, EMPTY)
    ids = [job_id for part in parts for job_id in part.ids]
    assert len(ids) < load.rows, "the queue ran empty: measure for a shorter time"
    seconds = max(part.seconds for part in parts)
    empty = sum(part.empty for part in parts)
    return ClaimRate(load=load, claims=len(ids), seconds=seconds, twice=len(ids) - len(set(ids)), empty=empty)


@contextmanager
def open_sessions(database_url: str) -> Iterator[Sessions]:
    """Open a session factory and close its connections afterwards."""
    sessions = make_sessions(database_url)
    try:
        yield sessions
    finally:
        sessions.kw["bind"].dispose()


def fill_queue(database_url: str, load: QueueLoad) -> None:
    """Add the tenants and their waiting jobs."""
    with open_sessions(database_url) as sessions, sessions.begin() as session:
        for number in range(load.tenants):
            session.execute(text("INSERT INTO tenants (id) VALUES (:id)"), {"id": f"tenant-{number}"})
        session.execute(FILL, {"tenants": load.tenants, "models": load.models, "rows": load.rows})
    if load.analyzed:
        run_statements(database_url, ["ANALYZE jobs", "ANALYZE tenants"])


def run_statements(database_url: str, statements: Sequence[str]) -> None:
    """Run statements in one transaction."""
    with open_sessions(database_url) as sessions, sessions.begin() as session:
        for statement in statements:
            session.execute(text(statement))


def claim_in_processes(database_url: str, load: QueueLoad) -> list[Claims]:
    """Share the claimers among processes that begin together; return what each claimer got."""
    context = multiprocessing.get_context("spawn")
    shares = [range(part, load.claimers, load.processes) for part in range(load.processes)]
    barrier = context.Barrier(load.claimers)
    with ProcessPoolExecutor(load.processes, context, set_start_barrier, (barrier,)) as pool:
        work = [pool.submit(claim_in_threads, database_url, load, share) for share in shares]
        return [claims for done in work for claims in done.result()]


def set_start_barrier(barrier: Barrier) -> None:
    """Keep the barrier in a process of the pool: it cannot travel with the work."""
    global start_barrier
    start_barrier = barrier


def claim_in_threads(database_url: str, load: QueueLoad, numbers: range) -> list[Claims]:
    """Run the claimers of one process, each in a thread."""
    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(lambda number: claim_with_own_connection(database_url, load, number), numbers))


def claim_with_own_connection(database_url: str, load: QueueLoad, number: int) -> Claims:
    """Run one claimer on a connection of its own."""
    with open_sessions(database_url) as sessions:
        return claim_until_time_is_up(sessions, load, number)


def claim_until_time_is_up(sessions: Sessions, load: QueueLoad, number: int) -> Claims:
    """Claim in a transaction each, as a worker does, until the load's seconds are over."""
    claims = Claims()
    claimer = Claimer(worker=f"claimer-{number}", lease=LEASE, warm=[f"model-{number % load.models}"])
    with sessions() as session:
        session.execute(text("SELECT 1"))
    start_barrier.wait(CONNECT_LIMIT_S)
    began = time.monotonic()
    while time.monotonic() - began < load.seconds:
        with sessions.begin() as session:
            job = claim(session, claimer)
        if job is None:
            claims.empty += 1
        else:
            claims.ids.append(job.id)
    claims.seconds = time.monotonic() - began
    return claims
