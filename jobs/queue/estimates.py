"""Estimates of when a queued job starts, from its position in the claims' order and the latest run times of its model."""

from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from jobs.queue.priorities import lane_floor
from jobs.states import JobState
from jobs.tables import Job, Worker

MAX_COUNTED = 1000  # jobs ahead, of each tenant
LAST_SEQ = 2**62  # behind every job that is queued
HISTORY = 50  # jobs whose run times are averaged

# Tenants take turns: until this one's k jobs before the job have run, every other has run as many, if it has so many.
AHEAD = text("""
WITH RECURSIVE mine AS (
    SELECT count(*) AS before FROM (SELECT 1 FROM jobs WHERE pool = :pool AND tenant = :tenant AND state = 'queued'
        AND (priority > :priority OR (priority = :priority AND seq < :seq)) LIMIT :most) AS ahead
),
at_work AS (
    (SELECT tenant FROM jobs WHERE pool = :pool AND state = 'queued' ORDER BY pool, tenant, priority DESC, seq LIMIT 1)
    UNION ALL
    SELECT next.tenant FROM at_work CROSS JOIN LATERAL (
        SELECT tenant FROM jobs WHERE pool = :pool AND state = 'queued' AND tenant > at_work.tenant
        ORDER BY pool, tenant, priority DESC, seq LIMIT 1) AS next
)
SELECT before + coalesce((SELECT sum((
    SELECT count(*) FROM (SELECT 1 FROM jobs WHERE pool = :pool AND tenant = at_work.tenant AND state = 'queued'
        AND priority >= :floor LIMIT before + 1) AS theirs))
    FROM at_work WHERE tenant <> :tenant), 0)
FROM mine
""")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A duration in seconds: half of the jobs take at most p50, eight in ten at most p80."""

    p50: float
    p80: float

    def __mul__(self, times: float) -> "Expected":
        return Expected(p50=round(times * self.p50, 3), p80=round(times * self.p80, 3))


@dataclass(frozen=True, kw_only=True)
class QueuePosition:
    """The position of a queued job, and when it is likely to start."""

    position: int  # jobs that are likely to start before
    starts_in_s: Expected | None  # None: nobody serves the pool, or no job of the model has run yet


def estimate_position(session: Session, job: Job) -> QueuePosition:
    """Estimate the position of a queued job. A job without a seq is not stored and counts as the last of its tenant."""
    given = {"pool": job.pool, "tenant": job.tenant, "priority": job.priority, "seq": job.seq or LAST_SEQ}
    limits = {"most": MAX_COUNTED, "floor": lane_floor(job.priority)}
    position = int(session.scalar(AHEAD, given | limits) or 0)
    return QueuePosition(position=position, starts_in_s=estimate_start(session, job.pool, job.model, position))


def estimate_start(session: Session, pool: str, model: str, position: int) -> Expected | None:
    """Estimate the time until the job behind `position` others starts, with as many jobs at once as run now."""
    took, running = estimate_run_time(session, model), count_running(session, pool)
    if running:
        return None if took is None else took * ((position + 1) / running)
    idle = session.scalar(select(func.count()).where(Worker.pool == pool)) or 0
    return None if took is None or idle == 0 else took * (position / idle)


def estimate_run_time(session: Session, model: str) -> Expected | None:
    """Return how long the model's latest jobs took from start to success; None when there is none."""
    took = func.extract("epoch", Job.finished_at - Job.started_at).label("took")
    ended = select(took).where(Job.model == model, Job.state == JobState.SUCCEEDED).order_by(Job.finished_at.desc())
    times = ended.limit(HISTORY).subquery().c.took
    found = session.execute(select(*(func.percentile_cont(share).within_group(times) for share in (0.5, 0.8)))).one()
    return None if found[0] is None else Expected(p50=round(float(found[0]), 3), p80=round(float(found[1]), 3))


def count_running(session: Session, pool: str) -> int:
    """Count the running jobs of a pool. While others wait, this is how many its workers can run at once."""
    return session.scalar(select(func.count()).where(Job.pool == pool, Job.state == JobState.RUNNING)) or 0
