"""Workers that run several jobs at once."""

import json
import signal
from dataclasses import replace

import pytest

from embedded.service import start_part, start_worker
from jobs.queue import attempts
from jobs.queue.claims import Claimer, claim, try_to_claim
from jobs.queue.retry_policy import RetryPolicy
from jobs.tables import Job
from tests.services.jobs import SLOW, add_job, read_job
from tests.services.test_claims import LEASE
from tests.services.test_run import OUT_OF_MEMORY, writer_that_breaks
from tests.services.watching import LIMIT_S, download, dragging, ended, wait_until
from worker.execution.runner import Runner

CLAIMER = Claimer(worker="w", lease=LEASE, together=True)
DRAG = SLOW | {"movable": None, "drag": {"max_iterations": 60, "stop_distance": 0.1}}
RETRIES = RetryPolicy(max_attempts=2, delay_s=0.0, delay_limit_s=0.0)


@pytest.fixture
def four_slots(stack):
    stack.environment |= {"DRAGQUEUE_SLOTS": "4", "DRAGQUEUE_THREADS": "2"}  # two batchers
    return stack


def posted(client, document, count):
    return [client.post("/v1/jobs", json=document | {"source": {"seed": seed}}).json() for seed in range(count)]


def test_jobs_that_run_together_give_what_each_gives_alone(client, four_slots, cleanup):
    jobs = posted(client, DRAG, 6)
    worker = start_worker(four_slots, cleanup)
    wait_until(lambda: len(client.get("/v1/jobs", params={"state": "running"}).json()["jobs"]) == 4, "four running jobs")
    assert [ended(client, job)["state"] for job in jobs] == ["succeeded"] * 6
    worker.stop()
    del four_slots.environment["DRAGQUEUE_SLOTS"]
    start_worker(four_slots, cleanup, 1)
    [again] = posted(client, DRAG, 1)
    ended(client, again)
    together, alone = (json.loads(download(client, job, "trajectory.json"))["steps"][:5] for job in (jobs[0], again))
    for one, other in zip(together, alone, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["handles"][0] == pytest.approx(other["handles"][0], abs=0.05)


def test_each_can_be_canceled_stopped_and_fail_by_itself(client, four_slots, cleanup):
    longer = SLOW | {"drag": {"max_iterations": 2000, "stop_distance": 0.1}}
    canceled, stopped = posted(client, longer, 2)
    late = client.post("/v1/jobs", json=longer | {"run_timeout_s": 2}).json()
    start_worker(four_slots, cleanup)
    for job in (canceled, stopped):
        dragging(client, job)
    client.post(f"/v1/jobs/{canceled['id']}/cancel")
    client.post(f"/v1/jobs/{stopped['id']}/stop")
    assert ended(client, canceled)["state"] == "canceled"
    assert (ended(client, stopped)["state"], ended(client, stopped)["stop_reason"]) == ("succeeded", "stopped")
    assert ended(client, late)["error"]["code"] == "timeout"


def test_whose_worker_is_killed_run_alone_next_and_lose_no_attempt(client, four_slots, cleanup, sessions):
    start_part(four_slots, "reconciler", [], cleanup)
    jobs = posted(client, DRAG, 3)
    first = start_worker(four_slots, cleanup)
    for job in jobs:
        dragging(client, job)
    assert all(read_job(sessions, job["id"]).together for job in jobs)
    first.process.kill()
    for job in jobs:
        wait_until(lambda: read_job(sessions, job["id"]).state == "queued", "end of the lease")  # noqa: B023
        row = read_job(sessions, job["id"])
        assert (row.attempt, row.failures, row.alone) == (1, 0, True)
    start_worker(four_slots, cleanup, 1)
    for job in jobs:
        assert ended(client, job)["state"] == "succeeded"
        assert not read_job(sessions, job["id"]).together


def test_who_is_asked_to_end_hands_all_jobs_back(client, four_slots, cleanup):
    jobs = posted(client, DRAG, 3)
    worker = start_worker(four_slots, cleanup)
    for job in jobs:
        dragging(client, job)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(LIMIT_S) == 0
    assert [client.get(f"/v1/jobs/{job['id']}").json()["state"] for job in jobs] == ["queued"] * 3


def test_short_of_memory_beside_others_a_job_runs_alone_next(settings, sessions, storage, queue):
    two_slots = settings.model_copy(update={"slots": 2})
    job_id, breaking = add_job(sessions), writer_that_breaks(OUT_OF_MEMORY[0], frames_at_a_time=1)
    Runner(two_slots, sessions, storage, queue, make_writer=breaking).run_next()
    row = read_job(sessions, job_id)
    assert (row.state, row.failures, row.alone) == ("queued", 0, True)
    runner = Runner(two_slots, sessions, storage, queue)
    wait_until(lambda: runner.run_next() or read_job(sessions, job_id).state == "succeeded", "success alone")


def claimed_beside(sessions, model="tiny"):
    with sessions.begin() as session:
        job = try_to_claim(session, replace(CLAIMER, warm=[model], only=model))
        return None if job is None else job.id


def test_beside_a_job_come_those_of_its_model_alone(sessions):
    first, second = add_job(sessions), add_job(sessions)
    other = add_job(sessions, model="other", priority=5)
    assert claimed_beside(sessions) is None  # it is the other model's turn
    with sessions.begin() as session:
        assert claim(session, CLAIMER).id == other
    assert [claimed_beside(sessions) for _ in range(3)] == [first, second, None]


def test_who_is_not_taken_beside_another_counts_as_served_nowhere(sessions):
    add_job(sessions, tenant="a", model="other")
    mine = add_job(sessions, tenant="b")
    assert claimed_beside(sessions) is None
    with sessions.begin() as session:
        assert claim(session, CLAIMER).model == "other"  # still its turn
    assert claimed_beside(sessions) == mine


def test_a_photo_is_inverted_alone(sessions):
    job_id = add_job(sessions)
    with sessions.begin() as session:
        job = session.get(Job, job_id)
        job.spec = job.spec | {"source": job.spec["source"] | {"upload": "0" * 64}}
    assert claimed_beside(sessions) is None
    with sessions.begin() as session:
        assert not claim(session, CLAIMER).together


def test_an_attempt_that_broke_down_beside_others_does_not_count(sessions):
    job_id = add_job(sessions)
    for expected in ((0, True), (1, True)):
        with sessions.begin() as session:
            job = claim(session, CLAIMER)
            attempts.release(session, job_id, job.attempt, "it broke", RETRIES)
        row = read_job(sessions, job_id)
        assert (row.failures, row.alone) == expected
    with sessions.begin() as session:
        job = claim(session, CLAIMER)
        attempts.release(session, job_id, job.attempt, "it broke", RETRIES)
    assert read_job(sessions, job_id).state == "failed"
