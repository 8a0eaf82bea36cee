"""The claim: one statement that decides which job runs next."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ARRAY, Text, bindparam, func, select, text, update
from sqlalchemy.orm import Session

from jobs.models import DEFAULT_POOL, Job, Tenant
from jobs.states import JobState

MOST_PASSED_OVER = 32  # times that a cold job lets one of a warm model go first

# The least recently served tenant that has work, its highest priority, a warm model among equals, then age. Tenants
# with work are found by skipping through the index; OFFSET 0 makes Postgres sort them first, so that it stops at the
# first that has something to claim and locks no other's jobs; each arm reads one row of an index. Tenants are never
# locked: claimers do not wait for each other.
CLAIM = text("""
WITH RECURSIVE at_work AS (
    (SELECT tenant FROM jobs WHERE pool = :pool AND state = 'queued' ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant FROM jobs WHERE pool = :pool AND state = 'queued' AND tenant > at_work.tenant ORDER BY tenant LIMIT 1)
    FROM at_work WHERE at_work.tenant IS NOT NULL
),
turns AS (
    SELECT id FROM tenants JOIN at_work ON tenants.id = at_work.tenant
    WHERE max_running IS NULL
        OR max_running > (SELECT count(*) FROM jobs WHERE jobs.tenant = tenants.id AND jobs.state = 'running')
    ORDER BY served_at, id OFFSET 0
),
pick AS MATERIALIZED (
    SELECT candidate.* FROM turns CROSS JOIN LATERAL (
        SELECT (array_agg(id ORDER BY priority DESC, warm AND NOT starved DESC, seq))[1] AS id,
            (array_agg(id) FILTER (WHERE NOT warm))[1] AS oldest
        FROM (SELECT arms.*, bool_or(passed_over >= :most_passed_over AND NOT warm) OVER () AS starved FROM (
            SELECT warm_arm.* FROM unnest(:warm) AS warm_model CROSS JOIN LATERAL (
                SELECT id, priority, seq, passed_over, true AS warm FROM jobs
                WHERE tenant = turns.id AND state = 'queued' AND model = warm_model AND pool = :pool
                    AND (start_before IS NULL OR start_before > now()) AND (not_before IS NULL OR not_before <= now())
                ORDER BY priority DESC, seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS warm_arm
            UNION ALL
            SELECT * FROM (
                SELECT id, priority, seq, passed_over, false AS warm FROM jobs
                WHERE pool = :pool AND tenant = turns.id AND state = 'queued'
                    AND (start_before IS NULL OR start_before > now()) AND (not_before IS NULL OR not_before <= now())
                ORDER BY priority DESC, seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS any_arm
        ) AS arms) AS arms
    ) AS candidate
    WHERE candidate.id IS NOT NULL
    LIMIT 1
),
passed_over AS (
    UPDATE jobs SET passed_over = passed_over + 1 FROM pick WHERE jobs.id = pick.oldest AND pick.oldest <> pick.id
),
claimed AS (
    UPDATE jobs SET state = 'running', attempt = attempt + 1, worker = :worker, progress = NULL, not_before = NULL,
        lease_expires_at = clock_timestamp() + :lease, started_at = coalesce(started_at, clock_timestamp())
    FROM pick WHERE jobs.id = pick.id AND jobs.state = 'queued'
    RETURNING jobs.id, jobs.attempt
)
INSERT INTO attempts (job_id, attempt, worker) SELECT id, attempt, :worker FROM claimed RETURNING job_id
""").bindparams(bindparam("warm", type_=ARRAY(Text)), most_passed_over=MOST_PASSED_OVER)


@dataclass(frozen=True, kw_only=True)
class Claimer:
    """Who claims."""

    worker: str
    lease: timedelta
    pool: str = DEFAULT_POOL
    warm: Sequence[str] = ()  # models in its memory


def claim(session: Session, claimer: Claimer) -> Job | None:
    """Start the job whose turn it is; None when nothing waits, or what waits is just being claimed."""
    with session.begin_nested() as attempt:
        job_id = session.scalar(CLAIM, vars(claimer) | {"warm": list(claimer.warm)})
        if job_id is None:
            return None
        job = session.get_one(Job, job_id, populate_existing=True)
        if over_the_cap(session, job.tenant):
            attempt.rollback()
            return None
    return job


def over_the_cap(session: Session, tenant: str) -> bool:
    """Let the tenant's clock strike; whether others claimed for it at the same time and it has too many jobs running now."""
    statement = update(Tenant).where(Tenant.id == tenant).values(served_at=func.clock_timestamp()).returning(Tenant.max_running)
    max_running = session.scalar(statement)  # holds the tenant's row: the count below sees everyone before us
    if max_running is None:
        return False
    running = select(func.count()).where(Job.tenant == tenant, Job.state == JobState.RUNNING)
    return (session.scalar(running) or 0) > max_running


def claimable(session: Session, limit: int) -> dict[str, int]:
    """How many jobs of each pool may be claimed now, counted up to limit."""
    now = func.clock_timestamp()
    waits = (Job.state == JobState.QUEUED, func.coalesce(Job.not_before, now) <= now)
    found = select(Job.pool).where(*waits).limit(limit).subquery()
    return dict(session.execute(select(found.c.pool, func.count()).group_by(found.c.pool)).all())


def is_claimable(session: Session, pool: str) -> bool:
    """Whether a job of the pool may be claimed now."""
    now = func.clock_timestamp()
    query = select(Job.id).where(Job.pool == pool, Job.state == JobState.QUEUED, func.coalesce(Job.not_before, now) <= now)
    return session.scalar(query.limit(1)) is not None
