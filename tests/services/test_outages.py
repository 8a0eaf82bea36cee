"""What the API still does while a server is killed, away or silent, and that it recovers by itself."""

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import func, make_url, select

from embedded.keys import local_key
from embedded.service import prepare, start_part, start_worker
from embedded.stack import Stack, local_stack
from jobs.queue import attempts
from jobs.queue.attempts import AttemptOutcome
from jobs.queue.broker import Broker
from jobs.queue.claims import Claimer, claim
from jobs.queue.retry_policy import RetryPolicy
from jobs.states import JobState
from tests.services.conftest import api_client, execute, open_to_nobody
from tests.services.jobs import DOCUMENT, add_job, read_job
from worker.reconciler.reconciler import Reconciler, SweepResult

LIMIT_S = 30
ANSWER_S = 18  # the longest that an API request may wait for a store: two tries of 5 s, on a machine that is busy
SKEW_S = 60


@pytest.fixture(scope="module")
def own(environment, tmp_path_factory) -> Iterator[Stack]:
    """Servers that these tests may kill; durable ones: others may forget what they have just committed."""
    state = tmp_path_factory.mktemp("state")
    open_to_nobody(state)
    with local_stack(state, environment) as stack:
        prepare(stack.settings())
        yield stack


@pytest.fixture
def api(own) -> Iterator[TestClient]:
    with serving(own) as client:
        yield client


@contextmanager
def serving(stack: Stack, **change) -> Iterator[TestClient]:
    settings = stack.settings().model_copy(update=change)
    with api_client(settings, local_key(stack), raise_server_exceptions=False) as client:
        yield client


@contextmanager
def away(stack: Stack, name: str):
    """Kill a server with -9; afterwards it is started again, on its data and its address."""
    child = next(child for child in stack.children if child.name == name)
    child.process.kill()
    child.process.wait()
    try:
        yield
    finally:
        wait_until(lambda: starts(stack, name), f"start of {name}")


def starts(stack: Stack, name: str) -> bool:
    """Start a server again; PostgreSQL refuses while a child of the killed one still lives."""
    stack.restart(name)
    time.sleep(0.5)
    return next(child for child in stack.children if child.name == name).process.poll() is None


def wait_until(true, what: str) -> None:
    until = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < until, f"no {what} within {LIMIT_S} s"
        time.sleep(0.05)


def ready(api) -> bool:
    return api.get("/readyz").status_code == 200


def photo() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(out, format="PNG")
    return out.getvalue()


def refusal(answer) -> tuple[int, str, bool]:
    return answer.status_code, answer.json()["code"], "retry-after" in answer.headers


def test_without_the_broker_jobs_are_accepted_at_once_and_run_when_it_is_back(own, api, cleanup):
    with away(own, "Valkey"):
        began = time.monotonic()
        answers = [api.post("/v1/jobs", json=DOCUMENT) for _ in range(3)]
        assert (time.monotonic() - began < 5, [answer.status_code for answer in answers]) == (True, [202] * 3)
        health = api.get("/readyz")
        assert (health.status_code, health.json()["problems"]) == (503, ["broker"])
    start_worker(own, cleanup)
    start_part(own, "reconciler", [], cleanup)
    jobs = [f"/v1/jobs/{answer.json()['id']}" for answer in answers]
    wait_until(lambda: all(api.get(job).json()["state"] == "succeeded" for job in jobs), "end of the jobs")
    assert ready(api)


def test_a_job_whose_message_was_flushed_gets_another(own, api):
    queue = Broker(own.settings().redis_url)
    job = api.post("/v1/jobs", json=DOCUMENT).json()
    assert queue.count_messages("default") == 1
    queue.redis.flushall()
    sweep = Reconciler(api.app.state.sessions, queue, RetryPolicy.from_settings(own.settings())).sweep()
    assert (sweep.messages, queue.count_messages("default")) == (1, 1)
    api.post(f"/v1/jobs/{job['id']}/cancel")


def test_without_the_database_a_worker_takes_one_message_and_waits(own, api, cleanup):
    """No reconciler sends the messages again: those that are left, and the one that was taken, must do."""
    queue = Broker(own.settings().redis_url)
    queue.redis.flushall()
    jobs = [f"/v1/jobs/{api.post('/v1/jobs', json=DOCUMENT).json()['id']}" for _ in range(5)]
    log = own.logs / "worker-71.log"
    with away(own, "PostgreSQL"):
        start_worker(own, cleanup, 71)
        wait_until(lambda: "server" in log.read_text(), "word of the database")
        time.sleep(2)  # for further messages to be taken
        assert (queue.count_messages("default"), log.read_text().count("Traceback")) == (4, 0)
        assert log.read_text().count("waiting for a server") == 1
    wait_until(lambda: ready(api), "recovery")
    wait_until(lambda: all(api.get(job).json()["state"] == "succeeded" for job in jobs), "end of the jobs")
    assert log.read_text().count("Traceback") == 0


def test_a_worker_that_waits_for_the_database_can_be_asked_to_end(own, api, cleanup):
    queue = Broker(own.settings().redis_url)
    queue.redis.flushall()
    job = f"/v1/jobs/{api.post('/v1/jobs', json=DOCUMENT).json()['id']}"
    with away(own, "PostgreSQL"):
        worker = start_worker(own, cleanup, 72)
        log = own.logs / "worker-72.log"
        wait_until(lambda: "waiting for a server" in log.read_text(), "worker")
        worker.process.terminate()
        assert worker.process.wait(LIMIT_S) == 0
        assert (queue.count_messages("default"), log.read_text().count("Traceback")) == (1, 0)  # it is for another worker
    wait_until(lambda: ready(api), "recovery")
    api.post(f"{job}/cancel")


def test_a_broker_that_hangs_delays_no_submission_for_long(stack):
    with silent_server() as address, serving(stack, redis_url=f"redis://{address}") as api:
        began = time.monotonic()
        assert api.post("/v1/jobs", json=DOCUMENT).status_code == 202
        assert time.monotonic() - began < 10


def test_without_the_database_every_route_says_so_and_recovers_with_it(own, api):
    job = f"/v1/jobs/{api.post('/v1/jobs', json=DOCUMENT).json()['id']}"
    upload = f"/v1/uploads/{api.post('/v1/uploads', content=photo()).json()['sha256']}"
    requests = [
        ("POST", "/v1/jobs", {"json": DOCUMENT}),
        ("POST", "/v1/jobs", {"files": {"job": json.dumps(DOCUMENT | {"source": {}}).encode(), "image": photo()}}),
        ("POST", "/v1/uploads", {"content": photo()}),
        *(("GET", path, {}) for path in ("/v1/jobs", job, f"{job}/frames", f"{job}/artifacts/result.png", upload)),
        *(("POST", f"{job}/{wish}", {}) for wish in ("stop", "cancel")),
    ]
    with away(own, "PostgreSQL"):
        refusals = {refusal(api.request(method, path, **body)) for method, path, body in requests}
        assert refusals == {(503, "database_unavailable", True)}
        assert api.get("/readyz").status_code == 503
        assert api.get("/healthz").status_code == api.get("/v1/models").status_code == 200
    wait_until(lambda: ready(api), "recovery")
    statuses = [api.request(method, path, **body).status_code for method, path, body in requests]
    assert statuses == [202, 202, 201, 200, 200, 200, 404, 200, 200, 200]


def test_a_database_that_crashes_under_load_loses_no_accepted_job_and_nobody_sees_a_defect(own, api):
    answers, done = [], threading.Event()

    def submit():
        while not done.is_set():
            answers.append(api.post("/v1/jobs", json=DOCUMENT))

    with ThreadPoolExecutor() as pool:
        threads = [pool.submit(submit) for _ in range(4)]
        wait_until(lambda: len(answers) > 20, "load")
        with away(own, "PostgreSQL"):
            wait_until(lambda: answers[-1].status_code == 503, "outage")
        wait_until(lambda: answers[-1].status_code == 202, "recovery")
        done.set()
        for thread in threads:
            thread.result()
    assert {answer.status_code for answer in answers} == {202, 503}
    accepted = [answer.headers["location"] for answer in answers if answer.status_code == 202]
    assert {api.get(location).status_code for location in accepted} == {200}


def test_a_database_that_takes_no_writes_is_unavailable_for_them(stack, settings):
    """As after a failover, until the application reaches the new primary."""
    local_key(stack)  # an earlier one
    name = make_url(settings.database_url).database
    execute(settings.database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with serving(stack) as api:
        assert refusal(api.post("/v1/jobs", json=DOCUMENT)) == (503, "database_unavailable", True)
        assert api.get("/v1/jobs").status_code == 200


def test_without_the_store_jobs_are_accepted_and_listed_but_nothing_is_uploaded(own, api):
    with away(own, "rclone S3"):
        assert refusal(api.post("/v1/uploads", content=photo())) == (503, "storage_unavailable", True)
        job = api.post("/v1/jobs", json=DOCUMENT)
        assert job.status_code == 202
        assert job.json()["id"] in {listed["id"] for listed in api.get("/v1/jobs").json()["jobs"]}
        health = api.get("/readyz")
        assert (health.status_code, health.json()["problems"]) == (503, ["store"])
    wait_until(lambda: ready(api), "recovery")
    assert api.post("/v1/uploads", content=photo()).status_code == 201


def test_a_store_that_hangs_holds_no_request_for_long(stack):
    with silent_server() as address, serving(stack, s3_endpoint=f"http://{address}") as api:
        began = time.monotonic()
        with ThreadPoolExecutor() as pool:
            health = pool.submit(api.get, "/readyz")
            upload = pool.submit(api.post, "/v1/uploads", content=photo())
            assert api.post("/v1/jobs", json=DOCUMENT).status_code == 202
            assert time.monotonic() - began < 5
            assert refusal(upload.result()) == (503, "storage_unavailable", True)
            assert health.result().json()["problems"] == ["store"]
        assert time.monotonic() - began < ANSWER_S


@contextmanager
def silent_server():
    """Takes connections, as the kernel does for it, and never says a word; yields host:port."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("skew_s", [-SKEW_S, SKEW_S])
def test_leases_and_ages_follow_the_databases_clock_on_a_host_whose_clock_is_wrong(
    client, sessions, queue, settings, monkeypatch, skew_s
):
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + skew_s)
    lease, soon = timedelta(seconds=SKEW_S / 2), database_now(sessions) + timedelta(seconds=SKEW_S / 2)
    job_id = client.post("/v1/jobs", json=DOCUMENT | {"priority": 1}).json()["id"]
    waiting = add_job(sessions, start_before=soon.isoformat())
    with sessions.begin() as session:
        job = claim(session, Claimer(worker="w", lease=lease))
    assert str(job.id) == job_id
    assert near(job.created_at, job.started_at, job.lease_expires_at - lease, database_now(sessions))
    queue.send_wake_up("default")  # as many messages as jobs wait: a sweep has nothing to do
    assert Reconciler(sessions, queue, RetryPolicy.from_settings(settings)).sweep() == SweepResult()
    assert read_job(sessions, waiting).state == JobState.QUEUED
    with sessions.begin() as session:
        attempts.renew(session, job.id, job.attempt, lease)
    assert near(read_job(sessions, job.id).lease_expires_at - lease, database_now(sessions))
    with sessions.begin() as session:
        attempts.finish(session, job.id, job.attempt, AttemptOutcome(state=JobState.SUCCEEDED))
    ended = read_job(sessions, job.id)
    retained = timedelta(seconds=ended.spec["retain_for_s"])
    assert near(ended.finished_at, ended.expires_at - retained, database_now(sessions))


def database_now(sessions):
    with sessions() as session:
        return session.scalar(select(func.clock_timestamp()))


def near(*times) -> bool:
    return max(times) - min(times) < timedelta(seconds=SKEW_S / 4)
