"""Checks of PostgreSQL, and of the workers and the reconciler by what the database knows of them."""

import time
from collections.abc import Callable
from uuid import uuid4

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from cli.doctor.findings import Finding, Findings, Verdict, first_line, ok, problem, run_check, warning
from jobs.database import make_engine
from jobs.queue.claims import count_claimable
from jobs.settings import Settings
from jobs.tables import Base
from migrations.upgrade import alembic_config

OLDEST_POSTGRES = 14
MAX_SKEW_S = 5.0
SEEN_S = 600.0  # a worker is there that has reported, or renewed its job's lease, within that time
OVERDUE_S = 60.0  # a reconciler should have noticed a lease that ran out this long ago
MAX_WAITING = 1000  # jobs that are counted
PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
# a worker is there that reported lately, or whose job's lease was renewed lately
WORKERS = text("""
SELECT pool, count(*) AS known, count(*) FILTER (WHERE seen_at > clock_timestamp() - make_interval(secs => :seen_s) OR EXISTS (
    SELECT FROM jobs WHERE jobs.worker = workers.name AND state = 'running' AND lease_expires_at > clock_timestamp()
)) AS seen
FROM workers GROUP BY pool
""")


def check_postgres(settings: Settings) -> Findings:
    """Yield the findings about the database and what it knows."""
    engine = make_engine(settings.database_url)
    try:
        with engine.connect() as connection:
            yield from check_database(connection)
    except OperationalError as error:
        yield problem("PostgreSQL", first_line(error), "start it, and see that DRAGQUEUE_DATABASE_URL is right")
    finally:
        engine.dispose()


def check_database(connection: Connection) -> Findings:
    """Yield the findings about a database that can be reached."""
    yield run_and_roll_back("PostgreSQL", check_version, connection)
    yield run_and_roll_back("database clock", check_database_clock, connection)
    migrated = run_and_roll_back("migrations", check_revision, connection)
    yield migrated
    if migrated.verdict == Verdict.OK:
        yield run_and_roll_back("database rights", check_rights, connection)
        yield run_and_roll_back("reconciler", check_leases, connection)
        yield from check_workers(connection)


def run_and_roll_back(name: str, check: Callable[[str, Connection], Finding], connection: Connection) -> Finding:
    """Run a check in a transaction of its own, which leaves nothing behind."""
    try:
        return run_check(name, check, connection, advice="see the message and PostgreSQL's log")
    finally:
        connection.rollback()


def check_version(name: str, connection: Connection) -> Finding:
    """Report a server that is too old."""
    version = connection.scalar(text("SHOW server_version"))
    if int(connection.scalar(text("SHOW server_version_num")) or 0) < OLDEST_POSTGRES * 10_000:
        return problem(name, f"version {version}", f"upgrade it to {OLDEST_POSTGRES} or newer")
    return ok(name, f"version {version}")


def check_revision(name: str, connection: Connection) -> Finding:
    """Report a database that is not at this release's revision."""
    scripts = ScriptDirectory.from_config(alembic_config(""))
    newest, current = scripts.get_current_head(), MigrationContext.configure(connection).get_current_revision()
    if current == newest:
        return ok(name, f"at {current}, the newest")
    if current in {None, *(script.revision for script in scripts.walk_revisions())}:
        return problem(name, f"at {current or 'none'}, the newest is {newest}", "run dragqueue migrate")
    return problem(name, f"at {current}, which this release does not know", "install the release that migrated the database")


def check_database_clock(name: str, connection: Connection, now: Callable[[], float] = time.time) -> Finding:
    """Report a clock that differs from this host's.

    Args:
        now: the host's clock, in seconds since the epoch.
    """
    before = now()
    database_time = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)
    skew_s = database_time - (before + now()) / 2
    if abs(skew_s) <= MAX_SKEW_S:
        return ok(name, f"{skew_s:+.1f} s from this host's")
    advice = "leases and ages use the database's clock alone, but links and webhooks this host's: let NTP set both"
    return warning(name, f"{skew_s:+.1f} s from this host's", advice)


def check_rights(name: str, connection: Connection) -> Finding:
    """Report a role that may not read and write every table, and a standby, which takes no writes."""
    holds = text("SELECT has_table_privilege(:table, :privilege)")
    wanted = [(table, privilege) for table in sorted(Base.metadata.tables) for privilege in PRIVILEGES]
    lacking = [
        f"{privilege} on {table}"
        for table, privilege in wanted
        if not connection.scalar(holds, {"table": table, "privilege": privilege})
    ]
    if lacking:
        return problem(name, f"the role lacks {', '.join(lacking)}", "GRANT it what it lacks")
    connection.execute(text("INSERT INTO tenants (id) VALUES (:id)"), {"id": f"doctor-{uuid4()}"})
    return ok(name, "may read and write every table")


def check_leases(name: str, connection: Connection) -> Finding:
    """Report leases that ran out and that no reconciler noticed."""
    statement = text("SELECT count(*) FROM jobs WHERE lease_expires_at < clock_timestamp() - make_interval(secs => :overdue_s)")
    overdue = connection.scalar(statement, {"overdue_s": OVERDUE_S})
    if overdue:
        return problem(name, f"{overdue} leases ran out and nobody noticed", "start dragqueue reconciler")
    return ok(name, "no lease is overdue")


def check_workers(connection: Connection) -> Findings:
    """Yield for each pool whether workers serve it and whether jobs wait there."""
    known = {row.pool: row for row in connection.execute(WORKERS, {"seen_s": SEEN_S})}
    waiting = count_claimable(Session(connection), MAX_WAITING)
    if not known and not waiting:
        yield ok("workers", "none has run a job yet, no job waits")
    for pool in sorted({*known, *waiting}):
        workers, seen = (known[pool].known, known[pool].seen) if pool in known else (0, 0)
        yield check_pool(pool, workers, seen, waiting.get(pool, 0))


def check_pool(pool: str, known: int, seen: int, waiting: int) -> Finding:
    """Report a pool where jobs wait and no worker is there."""
    name = f"pool {pool}"
    found = f"workers: {known}, seen within {SEEN_S / 60:g} min: {seen}; jobs that wait: {waiting}"
    if waiting and not known:
        return problem(name, found, f"start dragqueue worker with DRAGQUEUE_POOL={pool}")
    if waiting and not seen:
        return problem(name, found, f"see whether its workers live, else start dragqueue worker with DRAGQUEUE_POOL={pool}")
    return ok(name, found)
