"""The claim: one statement that decides which job runs next."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from psycopg.errors import LockNotAvailable
from sqlalchemy import ARRAY, Text, bindparam, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jobs.queue.priorities import LANE
from jobs.states import JobState
from jobs.tables import DEFAULT_POOL, Job, Tenant

MAX_PASSED_OVER = 32  # times that a cold job lets one of a warm model go first
MAX_TRIES = 20  # of one claim: other claimers may take the job that it waited for, again and again

MAY_RUN = (
    "(start_before IS NULL OR start_before > now() OR started_at IS NOT NULL) AND (not_before IS NULL OR not_before <= now())"
)

# A job may share a process with others unless it inverts a photo, which takes the memory of many drags.
MAY_SHARE = "NOT jobs.alone AND jobs.spec #>> '{source,upload}' IS NULL"

# Tenants that have work and may run more of it: those whose next job somebody waits for, before those with batches alone;
# among them the least recently served first. Those with work are found by skipping through the index that the full ORDER BY
# names: any other could lead through all their finished jobs. Each is then looked up, so that idle tenants cost nothing.
# OFFSET 0 makes Postgres sort before it looks for jobs.
TURNS = f"""
WITH RECURSIVE at_work AS (
    (SELECT tenant, priority FROM jobs WHERE pool = :pool AND state = 'queued' AND {MAY_RUN}
        ORDER BY pool, tenant, priority DESC, seq LIMIT 1)
    UNION ALL
    SELECT next.tenant, next.priority FROM at_work CROSS JOIN LATERAL (
        SELECT tenant, priority FROM jobs WHERE pool = :pool AND state = 'queued' AND tenant > at_work.tenant AND {MAY_RUN}
        ORDER BY pool, tenant, priority DESC, seq LIMIT 1) AS next
),
turns AS (
    SELECT id, max_running FROM at_work CROSS JOIN LATERAL (SELECT * FROM tenants WHERE id = at_work.tenant LIMIT 1) AS tenants
    WHERE max_running IS NULL
        OR max_running > (SELECT count(*) FROM jobs WHERE jobs.tenant = tenants.id AND jobs.state = 'running')
    ORDER BY at_work.priority < {LANE}, served_at, id OFFSET 0
)"""

# A tenant's highest priority, a warm model among equals, then age. Only the first tenant that has something to claim is
# looked at, so that no other's jobs are locked. Each arm reads one row of an index: BETWEEN and its ORDER BY leave no other
# than (tenant, model, priority, seq), where the equal sign let Postgres walk through all a tenant has to find a model that it
# has not. Claimers never wait for each other: of those who serve a tenant at the same moment one sets its clock.
CLAIM = text(f"""{TURNS},
pick AS MATERIALIZED (
    SELECT candidate.*, turns.id AS tenant, turns.max_running FROM turns CROSS JOIN LATERAL (
        SELECT (array_agg(id ORDER BY priority DESC, warm AND NOT starved DESC, seq))[1] AS id,
            (array_agg(id) FILTER (WHERE NOT warm))[1] AS oldest
        FROM (SELECT arms.*, bool_or(passed_over >= :max_passed_over AND NOT warm) OVER () AS starved FROM (
            SELECT warm_arm.* FROM unnest(:warm) AS warm_model CROSS JOIN LATERAL (
                SELECT id, priority, seq, passed_over, true AS warm FROM jobs
                WHERE tenant = turns.id AND state = 'queued' AND model BETWEEN warm_model AND warm_model
                    AND pool = :pool AND {MAY_RUN}
                ORDER BY model, priority DESC, seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS warm_arm
            UNION ALL
            SELECT * FROM (
                SELECT id, priority, seq, passed_over, false AS warm FROM jobs
                WHERE pool = :pool AND tenant = turns.id AND state = 'queued' AND {MAY_RUN}
                ORDER BY priority DESC, seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS any_arm
        ) AS arms) AS arms
    ) AS candidate
    WHERE candidate.id IS NOT NULL
    LIMIT 1
),
passed_over AS (
    UPDATE jobs SET passed_over = jobs.passed_over + 1 FROM pick, claimed WHERE jobs.id = pick.oldest AND pick.oldest <> pick.id
),
served AS (
    UPDATE tenants SET served_at = clock_timestamp()
    WHERE id = (SELECT id FROM tenants WHERE id = (SELECT tenant FROM claimed) FOR NO KEY UPDATE SKIP LOCKED)
),
claimed AS (
    UPDATE jobs SET state = 'running', attempt = attempt + 1, worker = :worker, progress = NULL, not_before = NULL,
        lease_expires_at = clock_timestamp() + :lease, started_at = coalesce(started_at, clock_timestamp()),
        together = :together AND {MAY_SHARE}
    FROM pick
    WHERE jobs.id = pick.id AND jobs.state = 'queued' AND (CAST(:only AS text) IS NULL OR (jobs.model = :only AND {MAY_SHARE}))
    RETURNING jobs.*, pick.max_running
),
begun AS (
    INSERT INTO attempts (job_id, attempt, worker) SELECT id, attempt, :worker FROM claimed
)
SELECT * FROM claimed
""").bindparams(bindparam("warm", type_=ARRAY(Text)), bindparam("only", type_=Text), max_passed_over=MAX_PASSED_OVER)

WAITING = f"""{TURNS}
SELECT found.id FROM turns CROSS JOIN LATERAL (
    SELECT id FROM jobs WHERE pool = :pool AND tenant = turns.id AND state = 'queued' AND {MAY_RUN}
    ORDER BY priority DESC, seq LIMIT 1 {{lock}}
) AS found LIMIT 1
"""
FIRST_WAITING = text(WAITING.format(lock=""))
LOCK_FIRST_WAITING = text(WAITING.format(lock="FOR SHARE"))


@dataclass(frozen=True, kw_only=True)
class Claimer:
    """The worker that claims, and what it can run."""

    worker: str
    lease: timedelta
    pool: str = DEFAULT_POOL
    warm: Sequence[str] = ()  # models in its memory
    together: bool = False  # whether it can run several jobs at once
    only: str | None = None  # the model of those it runs already


def claim(session: Session, claimer: Claimer) -> Job | None:
    """Start the job whose turn it is; return None when no job may run."""
    for _ in range(MAX_TRIES):
        job = try_to_claim(session, claimer)
        if job is not None or not wait_for_claimers(session, claimer.pool):
            return job
    return None


def try_to_claim(session: Session, claimer: Claimer) -> Job | None:
    """Claim once. Return None also when it is another model's turn, or when other claimers hold the jobs that wait."""
    with session.begin_nested() as attempt:
        query = select(Job, Tenant.max_running).from_statement(CLAIM).execution_options(populate_existing=True)
        found = session.execute(query, vars(claimer) | {"warm": list(claimer.warm)}).one_or_none()
        if found is None:
            return None
        job: Job = found.Job
        if found.max_running is not None and exceeds_running_limit(session, job.tenant, found.max_running):
            attempt.rollback()
            return None
    return job


def exceeds_running_limit(session: Session, tenant: str, max_running: int) -> bool:
    """Return whether the tenant has too many running jobs now, because others claimed for it at the same time."""
    session.execute(select(Tenant.id).where(Tenant.id == tenant).with_for_update(key_share=True))  # their claims are visible now
    running = select(func.count()).where(Job.tenant == tenant, Job.state == JobState.RUNNING)
    return (session.scalar(running) or 0) > max_running


def wait_for_claimers(session: Session, pool: str) -> bool:
    """Wait for the first job that other claimers hold; return whether a job is left that may run."""
    try:
        with session.begin_nested() as nested:
            job_id = session.scalar(LOCK_FIRST_WAITING, {"pool": pool})
            nested.rollback()  # releases the lock
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):  # the other claimer is frozen
            return False
        raise
    return job_id is not None


def count_claimable(session: Session, limit: int) -> dict[str, int]:
    """Count the jobs of each pool that may be claimed now, up to a limit over all pools."""
    now = func.clock_timestamp()
    running = select(func.count()).where(Job.tenant == Tenant.id, Job.state == JobState.RUNNING).scalar_subquery()
    at_the_cap = select(Tenant.id).where(Tenant.max_running <= running)
    waits = (Job.state == JobState.QUEUED, func.coalesce(Job.not_before, now) <= now, Job.tenant.not_in(at_the_cap))
    found = select(Job.pool).where(*waits).limit(limit).subquery()
    return dict(session.execute(select(found.c.pool, func.count()).group_by(found.c.pool)).all())


def has_claimable(session: Session, pool: str) -> bool:
    """Return whether a job of the pool may be claimed now."""
    return session.scalar(FIRST_WAITING, {"pool": pool}) is not None
