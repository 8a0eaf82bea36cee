"""How many claims a second Postgres serves when many workers claim at once from a long queue."""

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

gate: Barrier  # of a process of the pool


@dataclass(frozen=True, kw_only=True)
class Load:
    """A queue and who claims from it."""

    tenants: int
    rows: int = 100_000
    models: int = 4  # each claimer has one of them in memory
    claimers: int = 64  # threads, each with a connection of its own
    processes: int = 2  # that share the threads: in one, Python's lock is the limit
    seconds: float = 10.0
    analyzed: bool = True  # whether Postgres knows how long the queue is


# those without statistics first: TRUNCATE keeps them
LOADS = [Load(tenants=tenants, analyzed=analyzed) for analyzed in (False, True) for tenants in (1, 2, 20)]


@dataclass
class Claims:
    """What claimers got."""

    ids: list[UUID] = field(default_factory=list)
    empty: int = 0  # answers, while jobs waited
    seconds: float = 0.0  # of the slowest claimer


@dataclass(frozen=True, kw_only=True)
class ClaimRate:
    load: Load
    claims: int
    seconds: float
    twice: int  # jobs that two claimers got
    empty: int  # answers, while jobs waited

    @property
    def per_second(self) -> float:
        return self.claims / self.seconds


def measure_claims(database_url: str, load: Load) -> ClaimRate:
    """Fill the queue, claim from it for a while, empty it."""
    fill(database_url, load)
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
def connected(database_url: str) -> Iterator[Sessions]:
    sessions = make_sessions(database_url)
    try:
        yield sessions
    finally:
        sessions.kw["bind"].dispose()


def fill(database_url: str, load: Load) -> None:
    with connected(database_url) as sessions, sessions.begin() as session:
        for number in range(load.tenants):
            session.execute(text("INSERT INTO tenants (id) VALUES (:id)"), {"id": f"tenant-{number}"})
        session.execute(FILL, {"tenants": load.tenants, "models": load.models, "rows": load.rows})
    if load.analyzed:
        run_statements(database_url, ["ANALYZE jobs", "ANALYZE tenants"])


def run_statements(database_url: str, statements: Sequence[str]) -> None:
    with connected(database_url) as sessions, sessions.begin() as session:
        for statement in statements:
            session.execute(text(statement))


def claim_in_processes(database_url: str, load: Load) -> list[Claims]:
    context = multiprocessing.get_context("spawn")
    shares = [range(part, load.claimers, load.processes) for part in range(load.processes)]
    gate = context.Barrier(load.claimers)
    with ProcessPoolExecutor(load.processes, context, hold_at, (gate,)) as pool:
        work = [pool.submit(claim_in_threads, database_url, load, share) for share in shares]
        return [claims for done in work for claims in done.result()]


def hold_at(barrier: Barrier) -> None:
    """Remember, in a process of the pool, where its claimers wait for all others."""
    global gate
    gate = barrier


def claim_in_threads(database_url: str, load: Load, numbers: range) -> list[Claims]:
    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(lambda number: claim_alone(database_url, load, number), numbers))


def claim_alone(database_url: str, load: Load, number: int) -> Claims:
    with connected(database_url) as sessions:
        return claim_for_a_while(sessions, load, number)


def claim_for_a_while(sessions: Sessions, load: Load, number: int) -> Claims:
    """One claimer: a transaction for each claim, as a worker makes it."""
    claims = Claims()
    claimer = Claimer(worker=f"claimer-{number}", lease=LEASE, warm=[f"model-{number % load.models}"])
    with sessions() as session:
        session.execute(text("SELECT 1"))
    gate.wait(CONNECT_LIMIT_S)
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
