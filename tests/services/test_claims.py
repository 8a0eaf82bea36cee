"""What a claim heeds besides state, priority and age; what it waits for, and what it never reads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import ARRAY, Text, bindparam, func, select, text, update

from jobs.queue.claims import CLAIM, MAX_PASSED_OVER, Claimer, claim, count_claimable, has_claimable
from jobs.tables import Job, Tenant
from tests.services.jobs import add_job, read_job

LEASE = timedelta(seconds=60)
FEW_ROWS = 100  # that a claim reads, however many there are
EXPLAIN = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {CLAIM.text}").bindparams(bindparam("warm", type_=ARRAY(Text)))
MANY_JOBS = """
    INSERT INTO jobs (id, tenant, model, spec, priority, state)
    SELECT gen_random_uuid(), 'default', '{model}', '{{}}', 0, '{state}' FROM generate_series(1, 5000)
"""
MANY_TENANTS = "INSERT INTO tenants (id, max_running) SELECT 'idle-' || n, n % 3 FROM generate_series(1, 10000) AS n"


def take(sessions, *warm, pool="default"):
    with sessions.begin() as session:
        return claim(session, Claimer(worker="w", lease=LEASE, pool=pool, warm=warm))


def change(sessions, job_id, **values):
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(values))


def let_run_at_once(sessions, tenant, most):
    with sessions.begin() as session:
        session.execute(update(Tenant).where(Tenant.id == tenant).values(max_running=most))


def race(claimers, *args):
    """What each got of those who claim at the same moment."""
    gate = threading.Barrier(claimers)

    def one(_):
        gate.wait()
        return take(*args)

    with ThreadPoolExecutor(claimers) as pool:
        return list(pool.map(one, range(claimers)))


def test_a_worker_claims_of_its_own_pool_only(sessions):
    small, big = add_job(sessions), add_job(sessions)
    change(sessions, big, pool="big")
    assert [take(sessions, pool="big").id, take(sessions, "tiny", pool="big")] == [big, None]
    assert read_job(sessions, small).state == "queued"


def test_a_warm_model_of_another_pool_stays_there(sessions):
    change(sessions, add_job(sessions), pool="big")
    mine = add_job(sessions)
    assert [take(sessions, "tiny").id, take(sessions, "tiny")] == [mine, None]


def test_a_job_rests_until_its_time(sessions):
    resting, rested = add_job(sessions), add_job(sessions)
    change(sessions, resting, not_before=func.now() + timedelta(hours=1))
    change(sessions, rested, not_before=func.now() - timedelta(seconds=1))
    job = take(sessions, "tiny")
    assert (job.id, job.not_before, take(sessions, "tiny")) == (rested, None, None)


def test_racing_claimers_never_exceed_a_tenants_cap_and_leave_nobody_idle(sessions):
    for _ in range(10):
        add_job(sessions, tenant="capped")
        add_job(sessions, tenant="free")
    let_run_at_once(sessions, "capped", 3)
    tenants = [job.tenant for _ in range(2) for job in race(8, sessions, "tiny") if job is not None]
    assert (tenants.count("capped"), tenants.count("free")) == (3, 10)


def test_an_empty_cap_lets_nothing_run(sessions):
    add_job(sessions, tenant="blocked")
    let_run_at_once(sessions, "blocked", 0)
    assert take(sessions) is None


def test_what_a_cap_holds_back_calls_no_worker(sessions):
    for _ in range(3):
        add_job(sessions, tenant="capped")
    let_run_at_once(sessions, "capped", 1)
    with sessions() as session:
        assert (has_claimable(session, "default"), count_claimable(session, 10)) == (True, {"default": 3})
    take(sessions)
    with sessions() as session:
        assert (has_claimable(session, "default"), count_claimable(session, 10)) == (False, {})


def test_a_cold_job_is_passed_over_so_many_times_and_no_more(sessions):
    cold = add_job(sessions, model="other")
    for _ in range(MAX_PASSED_OVER + 5):
        add_job(sessions)
    order = [take(sessions, "tiny").id for _ in range(MAX_PASSED_OVER + 1)]
    assert (order.index(cold), read_job(sessions, cold).passed_over) == (MAX_PASSED_OVER, MAX_PASSED_OVER)


def test_of_several_warm_models_the_oldest_job_goes_first(sessions):
    cold = add_job(sessions)
    change(sessions, cold, model="third")
    old, young = add_job(sessions, model="other"), add_job(sessions)
    assert [take(sessions, "tiny", "other").id for _ in range(3)] == [old, young, cold]


def test_priority_goes_before_warmth_among_several_models(sessions):
    add_job(sessions)
    urgent = add_job(sessions, model="other", priority=1)
    assert take(sessions, "tiny", "third").id == urgent


def test_a_job_that_another_claim_passes_over_is_waited_for(sessions):
    cold = add_job(sessions, model="other")
    warm = add_job(sessions)
    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as first:
            assert claim(first, Claimer(worker="first", lease=LEASE, warm=["tiny"])).id == warm
            second = pool.submit(take, sessions)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.3)
        assert second.result(timeout=10).id == cold


def test_a_claim_in_progress_holds_up_none_of_the_same_tenant(sessions):
    first, second = add_job(sessions), add_job(sessions)
    with sessions.begin() as one, sessions.begin() as other:
        other.execute(text("SET LOCAL lock_timeout = '500ms'"))
        claimer = Claimer(worker="w", lease=LEASE)
        assert [claim(one, claimer).id, claim(other, claimer).id] == [first, second]


def test_a_claimer_that_is_frozen_is_not_waited_for_long(sessions):
    add_job(sessions)
    claimer = Claimer(worker="w", lease=LEASE)
    with sessions.begin() as frozen, sessions.begin() as other:
        assert claim(frozen, claimer) is not None
        other.execute(text("SET LOCAL lock_timeout = '300ms'"))
        assert claim(other, claimer) is None


def test_every_claim_sets_the_tenants_clock(sessions):
    add_job(sessions)
    with sessions() as session:
        before = session.scalar(select(func.clock_timestamp()))
    take(sessions)
    with sessions() as session:
        assert session.get(Tenant, "default").served_at > before


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize(
    "many",
    [
        MANY_TENANTS,
        MANY_JOBS.format(model="other", state="queued"),
        MANY_JOBS.format(model="tiny", state="succeeded"),
        MANY_JOBS.format(model="other", state="canceled"),
    ],
    ids=["idle-tenants", "cold-jobs", "ended-jobs", "ended-jobs-of-another-model"],
)
def test_a_claim_reads_few_rows_however_many_there_are(sessions, many, analyzed):
    add_job(sessions)
    with sessions.begin() as session:
        session.execute(text(many))
        session.execute(text("ANALYZE jobs, tenants" if analyzed else "SELECT 1"))
    claimer = vars(Claimer(worker="w", lease=LEASE)) | {"warm": ["third", "tiny"], "max_passed_over": MAX_PASSED_OVER}
    with sessions() as session:
        plan = session.scalar(EXPLAIN, claimer)[0]["Plan"]
    assert max(rows_read(plan)) < FEW_ROWS


def rows_read(node):
    """Of every node of a plan: what it gave and what it threw away."""
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    yield node["Actual Loops"] * (node["Actual Rows"] + removed)
    for part in node.get("Plans", []):
        yield from rows_read(part)
