"""kill -9 at every point of a job's life: what comes out is what an undisturbed run makes, to the byte."""

import json

import pytest
from sqlalchemy import func, update

from jobs.storage.objects import job_prefix
from jobs.tables import Attempt, Job
from tests.services.doomed import POINTS, RECONCILER_POINTS, run_reconciler, run_worker
from tests.services.jobs import add_job, read_job
from tests.services.test_photos import photo
from worker.reconciler.purge import Purger

PHOTO_JOB = {
    "model": "tiny",
    "inversion": {"steps": 10, "tuning_steps": 10},
    "points": [{"handle": [30, 30], "target": [50, 36]}],
    "drag": {"max_iterations": 14, "stop_distance": 0.1},
}
KILLED = -9
ENDED_BEFORE = ("after the commit",)


@pytest.fixture
def settings(settings):
    """Checkpoints at every step that finds the last one safe."""
    often = {"checkpoint_s": 0.001, "tuning_checkpoint_s": 0.001, "drain_grace_s": 0.0, "retry_delay_s": 0.0, "threads": 1}
    return settings.model_copy(update=often)


@pytest.fixture(scope="module")
def undisturbed():
    """sha256 of every artifact of a run that nobody kills, by name; filled by the first test."""
    return {}


def submit(client):
    answer = client.post("/v1/jobs", files={"job": json.dumps(PHOTO_JOB).encode(), "image": photo()})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def artifacts(client, job_id):
    shown = client.get(f"/v1/jobs/{job_id}", params={"expand": "artifacts"}).json()["artifacts"]
    frames = client.get(f"/v1/jobs/{job_id}/frames").json()["frames"]
    told_apart = [kept for kept in shown + frames if kept["name"] != "manifest.json"]  # which has timings
    return {kept["name"]: kept["sha256"] for kept in told_apart}


def let_leases_expire(sessions):
    with sessions.begin() as session:
        past = func.now() - func.make_interval(0, 0, 0, 0, 0, 1)
        session.execute(update(Job).where(Job.state == "running").values(lease_expires_at=past))


def objects_of(storage, job_id):
    return set(storage.keys(job_prefix("default", job_id)))


def expected_of(client, settings, undisturbed):
    if not undisturbed:
        job_id = submit(client)
        assert run_worker(settings) == 0
        undisturbed |= artifacts(client, job_id)
        assert {"result.png", "animation.mp4", "generator.safetensors", "trajectory.json"} <= undisturbed.keys()
    return undisturbed


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_leaves_what_the_next_one_ends_as_if_nothing_had_been(
    client, settings, sessions, storage, undisturbed, point
):
    expected = expected_of(client, settings, undisturbed)
    job_id = submit(client)
    assert run_worker(settings, point) == KILLED
    let_leases_expire(sessions)
    assert run_reconciler(settings) == 0
    assert run_worker(settings) == 0
    job = read_job(sessions, job_id)
    assert (job.state, job.attempt, job.resume_point) == ("succeeded", 1 if point in ENDED_BEFORE else 2, None)
    assert artifacts(client, job_id) == expected
    assert Purger(sessions, storage, 0, 3600).purge().tidied >= 1
    with sessions() as session:
        rows = session.query(Attempt).filter(Attempt.job_id == job.id).order_by(Attempt.attempt).all()
    assert [row.ending for row in rows] == ["went silent", "succeeded"][-job.attempt :]
    shown = client.get(f"/v1/jobs/{job_id}", params={"expand": "artifacts"}).json()["artifacts"]
    assert len(objects_of(storage, job_id)) == len(expected) + len([kept for kept in shown if kept["name"] == "manifest.json"])


@pytest.mark.parametrize("point", RECONCILER_POINTS)
def test_a_reconciler_killed_leaves_a_database_that_the_next_one_repairs(settings, sessions, queue, point):
    silent, late = add_job(sessions, priority=1), add_job(sessions, start_before="2026-01-01T00:00:00Z")
    assert run_worker(settings, "after the claim") == KILLED
    let_leases_expire(sessions)
    assert run_reconciler(settings, point) == KILLED
    assert run_reconciler(settings) == 0
    assert [read_job(sessions, job_id).state for job_id in (silent, late)] == ["queued", "expired"]
    assert read_job(sessions, silent).failures == 1
    assert queue.count_messages("default") == 1


def test_an_attempt_goes_on_where_the_killed_one_was(client, settings, sessions):
    job_id = submit(client)
    assert run_worker(settings, "mid-drag") == KILLED
    point = read_job(sessions, job_id).resume_point
    assert (point["attempt"], "generator.safetensors" in point["names"]) == (1, True)
    let_leases_expire(sessions)
    run_reconciler(settings)
    assert run_worker(settings, "mid-projection") == 0  # it never projects again
    assert read_job(sessions, job_id).state == "succeeded"
