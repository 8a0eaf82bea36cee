"""When a job that waits is likely to start: its place in the claims' order, and how long jobs of its model took lately."""

from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from jobs.queue.priorities import lane_floor
from jobs.states import JobState
from jobs.tables import Job, Worker

MOST_COUNTED = 1000  # jobs ahead, of each tenant
BEHIND_ALL = 2**62  # a seq
HISTORY = 50  # jobs whose time to run is taken

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
    """How long, in seconds; of two jobs in ten it takes longer than the second."""

    p50: float
    p80: float

    def __mul__(self, times: float) -> "Expected":
        return Expected(p50=round(times * self.p50, 3), p80=round(times * self.p80, 3))


@dataclass(frozen=True, kw_only=True)
class QueuePosition:
    position: int  # jobs that are likely to start before
    starts_in_s: Expected | None  # None: nobody serves the pool, or no job of the model has run yet


def place(session: Session, job: Job) -> QueuePosition:
    """Of a queued job; one without a seq, which nobody has queued, would be the last of its tenant."""
    given = {"pool": job.pool, "tenant": job.tenant, "priority": job.priority, "seq": job.seq or BEHIND_ALL}
    limits = {"most": MOST_COUNTED, "floor": lane_floor(job.priority)}
    position = int(session.scalar(AHEAD, given | limits) or 0)
    return QueuePosition(position=position, starts_in_s=waits(session, job.pool, job.model, position))


def waits(session: Session, pool: str, model: str, position: int) -> Expected | None:
    """Until the job after so many others starts: as many as run now end one after the other."""
    took, running = run_time(session, model), busy(session, pool)
    if running:
        return None if took is None else took * ((position + 1) / running)
    idle = session.scalar(select(func.count()).where(Worker.pool == pool)) or 0
    return None if took is None or idle == 0 else took * (position / idle)


def run_time(session: Session, model: str) -> Expected | None:
    """From start to end of the model's latest jobs that succeeded; None when there is none."""
    took = func.extract("epoch", Job.finished_at - Job.started_at).label("took")
    ended = select(took).where(Job.model == model, Job.state == JobState.SUCCEEDED).order_by(Job.finished_at.desc())
    times = ended.limit(HISTORY).subquery().c.took
    found = session.execute(select(*(func.percentile_cont(share).within_group(times) for share in (0.5, 0.8)))).one()
    return None if found[0] is None else Expected(p50=round(float(found[0]), 3), p80=round(float(found[1]), 3))


def busy(session: Session, pool: str) -> int:
    """Jobs of a pool that run: while others wait, as many as its workers have room for."""
    return session.scalar(select(func.count()).where(Job.pool == pool, Job.state == JobState.RUNNING)) or 0
