"""That the benchmarks of scale measure what they say."""

import pytest

from benchmarks.claims import QueueLoad, measure_claims
from benchmarks.scale import ScaleBench
from benchmarks.sleeping_runner import SleepingRunner
from benchmarks.synthetic_work import SyntheticWork
from jobs.settings import REPOSITORY

WORK = SyntheticWork(seconds=0.1, steps=4, objects=3)


@pytest.fixture
def bench(settings):
    bench = ScaleBench(settings.model_copy(update={"checkpoints": REPOSITORY / "checkpoints"}))
    yield bench
    bench.close()


def test_a_sleeping_runner_takes_as_long_as_it_is_told_and_leaves_its_objects(settings, sessions, storage, queue, bench):
    batch, ended = bench.submit(2, WORK), []
    runner = SleepingRunner(settings, sessions, storage, queue)
    for _ in range(2):
        runner.run_next()
    bench.wait(batch, 2, ended.append)
    found = bench.read_throughput(batch, 2, WORK)
    assert ended == [2]
    assert (found.workers, found.jobs, found.not_once, found.incomplete) == (1, 2, 0, 0)
    assert found.seconds > 2 * WORK.seconds
    assert found.job_s > WORK.seconds
    assert 0 < found.idle_ms < 1000 * found.seconds


def test_no_job_is_claimed_twice_and_no_claim_comes_back_empty(settings):
    rate = measure_claims(settings.database_url, QueueLoad(tenants=3, rows=3000, claimers=6, processes=2, seconds=0.5))
    assert rate.claims > 0
    assert (rate.twice, rate.empty) == (0, 0)
