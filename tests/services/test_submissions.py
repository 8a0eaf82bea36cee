"""Repeated submissions, conditional and waiting reads, retries, and deletions."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, func, select, text, update

from api.concurrency import UNKNOWN_TURNS
from jobs.errors import KeyInUse
from jobs.queue import idempotency, jobs
from jobs.storage.objects import job_prefix
from jobs.tables import Artifact, IdempotencyKey, Job
from tests.services.jobs import DOCUMENT, add_job
from tests.services.test_photos import photo
from tests.services.watching import wait_until, wait_until_blocked
from worker.execution.runner import Runner

AT_ONCE = 12  # submissions, of which a few run at a time
WITHIN_S = 30  # of a request that would wait for 60 s if it missed the change


@pytest.fixture
def runner(settings, sessions, storage, queue):
    return Runner(settings, sessions, storage, queue)


def post(client, key, document=DOCUMENT):
    return client.post("/v1/jobs", json=document, headers={"Idempotency-Key": key})


def count(sessions, table):
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table))


def test_a_submission_repeated_with_its_key_is_answered_as_the_first_time(client, sessions, runner):
    first = post(client, "order 17")
    runner.run_next()
    again = post(client, "order 17")
    assert (again.status_code, again.json(), again.headers["location"]) == (202, first.json(), first.headers["location"])
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    assert count(sessions, Job) == 1


def test_a_key_goes_with_one_request(client, sessions):
    post(client, "order 17")
    other = post(client, "order 17", DOCUMENT | {"priority": 1})
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    same = post(client, "order 17", dict(reversed(DOCUMENT.items())))
    assert same.headers["idempotency-replayed"] == "true"
    assert count(sessions, Job) == 1


def test_what_came_with_the_job_is_part_of_the_request(client):
    def post_with(picture):
        files = {"job": json.dumps({"model": "tiny"}).encode(), "image": picture}
        return client.post("/v1/jobs", files=files, headers={"Idempotency-Key": "portrait"}).status_code

    assert [post_with(photo()), post_with(photo()), post_with(photo(seed=4))] == [202, 202, 422]


def test_a_refused_request_leaves_its_key_free(client):
    assert post(client, "order 17", DOCUMENT | {"model": "unknown"}).status_code == 422
    assert "idempotency-replayed" not in post(client, "order 17").headers


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9".encode("latin-1")])
def test_keys_are_short_and_printable(client, key):
    assert post(client, key).status_code == 422


def test_of_many_submissions_with_one_key_at_once_one_makes_a_job(client, sessions):
    """Those that run wait for a transaction that holds the key, and is rolled back; then all race."""
    with ThreadPoolExecutor(AT_ONCE) as pool, sessions() as holder:
        idempotency.reserve_key(holder, "default", "all at once", "a request that fails")
        submissions = [pool.submit(post, client, "all at once") for _ in range(AT_ONCE)]
        wait_until_blocked(sessions, UNKNOWN_TURNS)
        holder.rollback()
        answers = [submission.result() for submission in submissions]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert count(sessions, Job) == 1


def test_a_key_that_another_request_holds_for_long_is_in_use(sessions):
    with sessions() as holder, sessions() as waiter:
        idempotency.reserve_key(holder, "default", "slow", "a request that takes long")
        waiter.execute(text("SET LOCAL lock_timeout = 100"))
        with pytest.raises(KeyInUse, match="a request with the key slow is still being answered"):
            idempotency.reserve_key(waiter, "default", "slow", "a request that takes long")


def test_keys_are_kept_for_a_day(client, sessions):
    post(client, "old")
    post(client, "new")
    with sessions.begin() as session:
        session.execute(
            update(IdempotencyKey).where(IdempotencyKey.key == "old").values(created_at=func.now() - timedelta(days=2))
        )
        assert idempotency.forget_old(session) == 1
    assert count(sessions, IdempotencyKey) == 1


def test_a_job_that_has_not_changed_is_not_sent_again(client, sessions, runner):
    job_id = add_job(sessions)
    first = client.get(f"/v1/jobs/{job_id}")
    seen = {"If-None-Match": first.headers["etag"]}
    again = client.get(f"/v1/jobs/{job_id}", headers=seen)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get(f"/v1/jobs/{job_id}", headers=seen, params={"expand": "artifacts"}).status_code == 200
    runner.run_next()
    changed = client.get(f"/v1/jobs/{job_id}", headers=seen)
    assert (changed.status_code, changed.json()["state"]) == (200, "succeeded")


@contextmanager
def waiting_request(client, job_id, **headers):
    """A request that has begun to wait for the job; the future of its answer."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.get, f"/v1/jobs/{job_id}", headers={"Prefer": "wait=60"} | headers)
        wait_until(lambda: job_id in client.app.state.change_notifier.waiters, "waiting request")
        assert not answer.done()
        yield answer


def test_who_prefers_to_wait_hears_when_the_job_has_ended(client, sessions, runner):
    job_id = add_job(sessions)
    with waiting_request(client, job_id) as request:
        runner.run_next()
        answer = request.result(WITHIN_S)
    assert (answer.json()["state"], answer.headers["preference-applied"]) == ("succeeded", "wait=60")


def test_who_has_seen_the_job_and_prefers_to_wait_hears_of_any_change(client, sessions):
    job_id = add_job(sessions)
    seen = {"If-None-Match": client.get(f"/v1/jobs/{job_id}").headers["etag"]}
    with waiting_request(client, job_id, **seen) as request:
        client.post(f"/v1/jobs/{job_id}/stop")
        answer = request.result(WITHIN_S)
    assert (answer.json()["state"], answer.json()["stop_requested"]) == ("queued", True)


def test_a_wait_ends(client, sessions):
    job_id = add_job(sessions)
    seen = {"If-None-Match": client.get(f"/v1/jobs/{job_id}").headers["etag"], "Prefer": "respond-async, wait=1"}
    began = time.monotonic()
    answer = client.get(f"/v1/jobs/{job_id}", headers=seen)
    assert (answer.status_code, time.monotonic() - began >= 1) == (304, True)
    assert client.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=soon"}).status_code == 200


def test_a_job_shows_who_ran_it(client, sessions, runner):
    job_id = add_job(sessions)
    runner.run_next()
    (attempt,) = client.get(f"/v1/jobs/{job_id}", params={"expand": ["attempts", "artifacts"]}).json()["attempts"]
    assert (attempt["attempt"], attempt["worker"], attempt["ending"], attempt["reason"]) == (1, runner.name, "succeeded", None)
    assert attempt["began_at"] < attempt["ended_at"]


def test_an_ended_job_can_be_done_again(client, sessions, runner):
    job_id = add_job(sessions)
    assert client.post(f"/v1/jobs/{job_id}/retry").json()["code"] == "job_active"
    client.post(f"/v1/jobs/{job_id}/cancel")
    again = client.post(f"/v1/jobs/{job_id}/retry")
    assert (again.status_code, again.json()["state"]) == (202, "queued")
    assert again.headers["location"] == f"/v1/jobs/{again.json()['id']}" != f"/v1/jobs/{job_id}"
    assert again.json()["spec"] == client.get(f"/v1/jobs/{job_id}").json()["spec"]


def test_a_deleted_job_is_gone_with_everything_it_stored(client, sessions, storage, runner):
    job_id = add_job(sessions)
    assert client.delete(f"/v1/jobs/{job_id}").json()["code"] == "job_active"
    runner.run_next()
    assert list(storage.keys(job_prefix("default", job_id)))
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert list(storage.keys(job_prefix("default", job_id))) == []
    assert client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 404
    assert (count(sessions, Job), count(sessions, Artifact)) == (0, 0)


def test_what_is_just_being_deleted_cannot_be_gone_on_from(client, sessions, runner):
    parent = post(client, "parent").json()["id"]
    runner.run_next()
    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as deleting:
            jobs.get(deleting, "default", UUID(parent), lock=True)
            child = pool.submit(post, client, "child", {"model": "tiny", "source": {"job": parent}})
            wait_until_blocked(sessions)
            deleting.execute(delete(Job).where(Job.id == UUID(parent)))
        assert (child.result().status_code, child.result().json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize(("method", "path"), [("delete", ""), ("post", "/retry")])
def test_what_is_not_there_is_404(client, method, path):
    assert client.request(method, f"/v1/jobs/{uuid4()}{path}").json()["code"] == "job_not_found"
