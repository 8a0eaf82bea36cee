"""What is deleted when, from store and database."""

from datetime import timedelta

import pytest
from sqlalchemy import func, update

from jobs.models import Artifact, Job
from jobs.storage import artifact_key, job_prefix
from tests.services.jobs import add_job, read_job
from worker.purge import Purge, Purged
from worker.run import Runner


@pytest.fixture
def purge(sessions, storage):
    return Purge(sessions, storage, tidy_after_s=0)


@pytest.fixture
def done(settings, sessions, storage, queue):
    """A job that has succeeded."""
    job_id = add_job(sessions)
    Runner(settings, sessions, storage, queue).run_next()
    return job_id


def keys(storage, job_id):
    return {key.removeprefix(job_prefix("default", job_id)) for key in storage.keys(job_prefix("default", job_id))}


def let_expire(sessions, job_id):
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(expires_at=func.now() - timedelta(seconds=1)))


def test_what_earlier_attempts_left_is_deleted_and_the_result_stays(purge, sessions, storage, done):
    result = keys(storage, done)
    storage.put(artifact_key("default", done, 0, "result.png"), b"of a killed attempt", "image/png")
    storage.put(artifact_key("default", done, 1, "checkpoint/00009.safetensors"), b"of a zombie", "application/octet-stream")
    assert purge.purge() == Purged(tidied=1, objects=2)
    assert keys(storage, done) == result
    assert purge.purge() == Purged()


def test_nothing_is_tidied_before_its_time(sessions, storage, done):
    assert Purge(sessions, storage, tidy_after_s=600).purge() == Purged()


def test_a_canceled_job_keeps_nothing(purge, sessions, storage, done):
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == done).values(state="canceled"))
    assert purge.purge().tidied == 1
    assert keys(storage, done) == set()
    with sessions() as session:
        assert session.query(Artifact).count() == 0


def test_a_job_past_its_retention_goes_with_everything(purge, sessions, storage, done):
    let_expire(sessions, done)
    assert purge.purge().forgotten == 1
    assert (read_job(sessions, done), keys(storage, done)) == (None, set())


def test_a_job_stays_while_another_that_has_not_ended_goes_on_from_it(purge, client, sessions, done):
    child = client.post("/v1/jobs", json={"model": "tiny", "source": {"job": str(done)}}).json()["id"]
    let_expire(sessions, done)
    assert purge.purge().forgotten == 0
    client.post(f"/v1/jobs/{child}/cancel")
    assert purge.purge().forgotten == 1
