"""What is deleted when, from store and database."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from jobs.errors import StorageUnavailable
from jobs.storage.objects import artifact_key, job_prefix, raw_key, upload_key
from jobs.tables import Artifact, Batch, Job, PresignedUpload, Upload
from tests.services.jobs import add_job, read_job
from tests.services.test_photos import photo
from worker.execution.runner import Runner
from worker.reconciler.purge import Purger, PurgeResult


@pytest.fixture
def purge(sessions, storage):
    return Purger(sessions, storage, tidy_after_s=0, upload_retain_s=3600)


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
    assert purge.purge() == PurgeResult(tidied=1, objects=2)
    assert keys(storage, done) == result
    assert purge.purge() == PurgeResult()


def test_nothing_is_tidied_before_its_time(sessions, storage, done):
    assert Purger(sessions, storage, tidy_after_s=600, upload_retain_s=3600).purge() == PurgeResult()


def test_a_canceled_job_keeps_nothing(purge, sessions, storage, done):
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == done).values(state="canceled"))
    assert purge.purge().tidied == 1
    assert keys(storage, done) == set()
    with sessions() as session:
        assert session.query(Artifact).count() == 0


def test_a_job_past_its_retention_goes_with_everything(purge, sessions, storage, done):
    let_expire(sessions, done)
    assert purge.purge().deleted == 1
    assert (read_job(sessions, done), keys(storage, done)) == (None, set())


def test_a_job_stays_while_another_that_has_not_ended_goes_on_from_it(purge, client, sessions, done):
    child = client.post("/v1/jobs", json={"model": "tiny", "source": {"job": str(done)}}).json()["id"]
    let_expire(sessions, done)
    assert purge.purge().deleted == 0
    client.post(f"/v1/jobs/{child}/cancel")
    assert purge.purge().deleted == 1


class Locked:
    """A store that deletes nothing of one job."""

    def __init__(self, storage, job_id):
        self.storage = storage
        self.job_id = job_id

    def keys(self, prefix):
        return self.storage.keys(prefix)

    def remove(self, keys):
        if any(str(self.job_id) in key for key in keys):
            raise StorageUnavailable("the store answered AccessDenied")
        self.storage.remove(keys)


def test_a_job_that_cannot_be_deleted_holds_up_no_other(settings, sessions, storage, queue, done):
    other = add_job(sessions)
    Runner(settings, sessions, storage, queue).run_next()
    for job_id in (done, other):
        let_expire(sessions, job_id)
    assert Purger(sessions, Locked(storage, done), tidy_after_s=600, upload_retain_s=3600).purge().deleted == 1
    assert (read_job(sessions, done) is None, read_job(sessions, other) is None) == (False, True)


def test_uploads_that_nobody_names_go_and_those_that_a_job_needs_stay(client, sessions, storage):
    used, unused, queued = (client.post("/v1/uploads", content=photo(seed=seed)).json()["sha256"] for seed in (2, 3, 4))
    client.post("/v1/jobs", json={"model": "tiny", "source": {"upload": queued}})
    with sessions.begin() as session:
        session.execute(update(Upload).where(Upload.sha256 != used).values(used_at=func.now() - timedelta(days=1)))
    assert Purger(sessions, storage, tidy_after_s=600, upload_retain_s=3600).purge().uploads == 1
    assert [client.get(f"/v1/uploads/{sha256}").status_code for sha256 in (used, unused, queued)] == [200, 404, 200]
    assert [bool(list(storage.keys(upload_key("default", sha256)))) for sha256 in (used, unused, queued)] == [True, False, True]


def test_a_submission_keeps_its_upload_in_use(client, sessions):
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    with sessions.begin() as session:
        session.execute(update(Upload).values(used_at=func.now() - timedelta(days=1)))
    client.post("/v1/jobs", json={"model": "tiny", "source": {"upload": sha256}})
    with sessions() as session:
        assert session.scalar(select(Upload.used_at > func.now() - timedelta(minutes=1)))


def test_files_that_were_announced_and_never_completed_go_once_their_links_have_long_expired(purge, client, sessions, storage):
    ids = [client.post("/v1/uploads/presigned", json={"sha256": "0" * 64, "size_bytes": 5}).json()["id"] for _ in range(3)]
    for age_min, presigned_id in zip((59, 61, 61), ids, strict=True):
        with sessions.begin() as session:
            at = func.now() - timedelta(minutes=age_min)
            session.execute(update(PresignedUpload).where(PresignedUpload.id == presigned_id).values(expires_at=at))
    for presigned_id in ids[:2]:  # to the last nothing was sent
        storage.put(raw_key("default", presigned_id), b"hello", "image/png")
    assert purge.purge() == PurgeResult(presigned=2)
    assert [bool(list(storage.keys(raw_key("default", presigned_id)))) for presigned_id in ids] == [True, False, False]
    assert [client.post(f"/v1/uploads/presigned/{each}/complete").status_code for each in ids] == [422, 404, 404]


def test_a_batch_is_forgotten_with_its_last_job(purge, client, sessions):
    batch = client.post("/v1/batches", content=b'{"job": 1}\n').json()["id"]
    purge.purge()
    assert client.get(f"/v1/batches/{batch}").status_code == 200
    with sessions.begin() as session:
        session.execute(update(Batch).values(created_at=func.now() - timedelta(days=2)))
    purge.purge()
    assert client.get(f"/v1/batches/{batch}").status_code == 404
