"""Following a job: events from a real API process, before and after it was killed."""

import asyncio
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import httpx2
import pytest
from dragqueue_client import AsyncClient, Client, Event, Job, RequestRefused
from sqlalchemy import select

from embedded.servers import free_port, speaks_http
from embedded.service import start_part
from jobs.queue import attempts
from jobs.queue.events import EventType
from jobs.queue.retry_policy import RetryPolicy
from jobs.tables import Event as EventRow
from jobs.tables import Tenant
from tests.services.conftest import make_key
from tests.services.jobs import DOCUMENT, SLOW, add_job
from tests.services.test_claims import take
from worker.execution.runner import Runner

LIMIT_S = 60


@pytest.fixture
def serve(stack, cleanup):
    """Starts the API as a process at an address that stays the same."""
    port = free_port()

    def start():
        child = start_part(stack, "api", ["--port", str(port)], cleanup)
        child.wait_until(lambda: speaks_http(f"http://127.0.0.1:{port}/healthz"), LIMIT_S)
        return child, f"http://127.0.0.1:{port}"

    return start


@pytest.fixture
def runner(settings, sessions, storage, queue):
    return Runner(settings, sessions, storage, queue)


def types(told):
    return [event.type for event in told if isinstance(event, Event)]


def test_a_stream_shows_the_job_then_all_that_happens_and_ends_with_it(serve, api_key, runner, sessions):
    _, url = serve()
    with Client(url, api_key) as client:
        job = client.submit(SLOW)
        stream = client.events(job.id)
        first = next(stream)
        assert isinstance(first, Job)
        assert (first.id, first.state) == (job.id, "queued")
        thread = threading.Thread(target=runner.run_next)
        thread.start()
        told = list(stream)
        thread.join()
    assert types(told) == [EventType.RUNNING, EventType.SUCCEEDED]
    shown = [view for view in told if isinstance(view, Job)]
    iterations = [
        view.progress["iteration"] for view in shown if view.state == "running" and "iteration" in (view.progress or {})
    ]
    assert iterations == sorted(iterations)
    assert len(set(iterations)) > 1
    assert (shown[-1].state, shown[-1].id) == ("succeeded", job.id)


def test_what_was_missed_is_told_by_another_process(serve, api_key, sessions, runner):
    child, url = serve()
    with Client(url, api_key) as client:
        job = client.submit(DOCUMENT)
        stream = client.stream(job.id, after=0)
        _, queued = next(stream)
        child.process.kill()
        child.process.wait()
        runner.run_next()
        serve()
        missed = list(client.events(job.id, after=queued.seq))
    assert types(missed) == [EventType.RUNNING, EventType.SUCCEEDED]
    assert all(event.seq > queued.seq for event in missed if isinstance(event, Event))


def test_a_client_whose_stream_breaks_goes_on_by_itself(serve, api_key, runner):
    child, url = serve()
    with Client(url, api_key) as client:
        job = client.submit(DOCUMENT)
        stream = client.events(job.id)
        assert next(stream).state == "queued"  # it is open
        child.process.kill()
        child.process.wait()
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(list, stream)
            serve()
            runner.run_next()
            assert types(rest.result(LIMIT_S)) == [EventType.RUNNING, EventType.SUCCEEDED]


def test_streams_of_a_key_are_limited_and_freed(serve, api_key, sessions):
    with sessions.begin() as session:
        session.get(Tenant, "default").max_streams = 2
    job_id = add_job(sessions)
    _, url = serve()
    with Client(url, api_key) as client, ExitStack() as open_streams:
        for _ in range(2):
            stream = open_streams.enter_context(closing(client.stream(job_id, None)))
            next(stream)
        with pytest.raises(RequestRefused, match="may have 2 streams open"):
            next(client.stream(job_id, None))
        open_streams.close()
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            try:
                next(client.stream(job_id, None))
                return
            except RequestRefused:
                time.sleep(0.1)
    pytest.fail("closed streams were not freed")


def test_a_job_of_another_tenant_has_no_stream(serve, sessions):
    job_id = add_job(sessions)
    _, url = serve()
    with Client(url, make_key(sessions, "other")) as client, pytest.raises(RequestRefused) as refused:
        next(client.stream(job_id, None))
    assert (refused.value.status, refused.value.code) == (404, "job_not_found")


def test_the_asynchronous_client_does_the_same(serve, api_key, runner, tmp_path):
    _, url = serve()

    async def edit():
        async with AsyncClient(url, api_key) as client:
            job = await client.submit(DOCUMENT)
            thread = threading.Thread(target=runner.run_next)
            thread.start()
            told = [told async for told in client.events(job.id)]
            done = await client.wait(job.id)
            paths = [path async for path in client.download(job.id, tmp_path)]
            thread.join()
            return told, done, paths

    told, done, paths = asyncio.run(edit())
    assert types(told)[-1] == EventType.SUCCEEDED
    assert done.succeeded
    assert tmp_path / "result.png" in paths


def test_a_download_goes_on_where_it_was_interrupted(serve, api_key, runner, tmp_path):
    _, url = serve()
    with Client(url, api_key) as client:
        job = client.submit(DOCUMENT)
        runner.run_next()
        first = next(client.download(job.id, tmp_path))
        before = first.stat().st_mtime_ns
        (tmp_path / "source.png").write_bytes(b"something else")
        paths = list(client.download(job.id, tmp_path))
        assert first.stat().st_mtime_ns == before
        assert (tmp_path / "source.png").read_bytes().startswith(b"\x89PNG")
        archive = tmp_path / "all.zip"
        archive.write_bytes(client.http.get(f"/v1/jobs/{job.id}/archive").content)
    with zipfile.ZipFile(archive) as found:
        assert found.testzip() is None
        assert set(found.namelist()) == {str(path.relative_to(tmp_path)) for path in paths}
        assert found.read("result.png") == (tmp_path / "result.png").read_bytes()


def test_a_part_of_an_artifact_can_be_fetched(serve, api_key, runner):
    _, url = serve()
    with Client(url, api_key) as client:
        job = client.submit(DOCUMENT)
        runner.run_next()
        address = client.http.get(f"/v1/jobs/{job.id}/artifacts/result.png").headers["location"]
    part = httpx2.get(address, headers={"Range": "bytes=1-3"})
    assert part.content == b"PNG"  # rclone says 200 where others say 206


def events_of(sessions, job_id):
    with sessions() as session:
        return session.scalars(select(EventRow.type).where(EventRow.job_id == job_id).order_by(EventRow.seq)).all()


def test_every_move_is_told_once(client, sessions):
    job_id = add_job(sessions)
    attempt = take(sessions).attempt
    for _ in range(2):
        client.post(f"/v1/jobs/{job_id}/stop")
    retries = RetryPolicy(max_attempts=2, delay_s=0, delay_limit_s=0)
    with sessions.begin() as session:
        attempts.release(session, job_id, attempt, "a reason", retries)
    attempt = take(sessions).attempt
    with sessions.begin() as session:
        attempts.release(session, job_id, attempt, "a reason", retries)
    assert events_of(sessions, job_id) == [
        EventType.QUEUED, EventType.RUNNING, EventType.STOP_REQUESTED, EventType.QUEUED, EventType.RUNNING, EventType.FAILED,
    ]  # fmt: skip


def test_a_queued_job_knows_its_place_and_when_it_is_likely_to_start(client, sessions, runner):
    add_job(sessions)
    runner.run_next()
    runner.sign_on()
    for _ in range(3):
        add_job(sessions, tenant="other")
    add_job(sessions)
    last = add_job(sessions)
    place = client.get(f"/v1/jobs/{last}").json()["place"]
    assert place["position"] == 3  # one of mine, and two of the other's in turn with it
    assert 0 < place["starts_in_s"]["p50"] <= place["starts_in_s"]["p80"]
    add_job(sessions, priority=5)
    assert client.get(f"/v1/jobs/{last}").json()["place"]["position"] == 5


def test_a_job_can_be_checked_without_being_queued(client, sessions, runner, queue):
    verdict = client.post("/v1/jobs:validate", json=DOCUMENT)
    assert (verdict.status_code, verdict.json()["iterations"], verdict.json()["runs_for_s"]) == (200, 10, None)
    assert (client.get("/v1/jobs").json()["jobs"], queue.count_messages("default")) == ([], 0)
    refused = client.post("/v1/jobs:validate", json=DOCUMENT | {"model": "unknown"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "model")
    add_job(sessions)
    runner.run_next()
    assert client.post("/v1/jobs:validate", json=DOCUMENT).json()["runs_for_s"]["p50"] > 0
