"""That the benchmarks of scale measure what they say."""

from dataclasses import asdict
from uuid import uuid4

from sqlalchemy import update

from benchmarks.claims import Load, measure_claims
from benchmarks.scale import FIGURES, Work
from benchmarks.stand_in import StandIn
from jobs.tables import Job
from tests.services.jobs import add_job

WORK = Work(seconds=0.1, steps=4, objects=3)


def test_the_stand_in_works_as_long_as_it_is_told_and_leaves_its_objects(settings, sessions, storage, queue):
    jobs, batch = [add_job(sessions, points=[], metadata=asdict(WORK)) for _ in range(2)], uuid4()
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id.in_(jobs)).values(batch=batch))
    runner = StandIn(settings, sessions, storage, queue)
    for _ in jobs:
        runner.run_next()
    with sessions() as session:
        found = session.execute(FIGURES, {"batch": batch, "objects": WORK.objects}).one()
    assert (found.workers, found.not_once, found.incomplete) == (1, 0, 0)
    assert found.seconds > 2 * WORK.seconds
    assert found.job_s > WORK.seconds
    assert 0 < found.idle_ms < 1000 * found.seconds


def test_no_job_is_claimed_twice_and_no_claim_comes_back_empty(settings):
    rate = measure_claims(settings.database_url, Load(tenants=3, rows=3000, claimers=6, processes=2, seconds=0.5))
    assert rate.claims > 0
    assert (rate.twice, rate.empty) == (0, 0)
