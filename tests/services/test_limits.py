"""One client never stops another: what is checked before a body is read, and what waits for nobody else."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from uuid import uuid4

import pytest
from sqlalchemy import func, insert, select, text

from api.concurrency import UNKNOWN_TURNS
from embedded.servers import free_port, speaks_http
from embedded.service import start_part
from jobs.errors import QuotaExceeded
from jobs.queue import jobs
from jobs.queue.jobs import MAX_PAGE_BYTES
from jobs.tables import Job, Tenant
from jobs.tenants import quotas
from jobs.tenants.quotas import QueueQuota, Quotas
from tests.services.conftest import api_client, make_key
from tests.services.jobs import DOCUMENT, add_job
from tests.services.watching import wait_until_blocked

LIMIT_S = 60
AT_ONCE = 60
WEBHOOK = {"url": "https://example.com/hook"}


@pytest.fixture
def address(stack, cleanup):
    """Of the API as a process of its own."""
    port = free_port()
    child = start_part(stack, "api", ["--port", str(port)], cleanup)
    child.wait_until(lambda: speaks_http(f"http://127.0.0.1:{port}/healthz"), LIMIT_S)
    return "127.0.0.1", port


@pytest.fixture
def neighbour(settings, sessions, queue):
    """A client of another tenant, in the same process as `client`."""
    return make_key(sessions, "neighbour")


def test_without_a_key_the_answer_comes_before_the_body(address):
    paths = ("jobs", "jobs:validate", "webhooks", "uploads", "uploads/presigned", "batches")
    for path, key in product(paths, ("", "Authorization: Bearer dq_0_0\r\n")):
        with socket.create_connection(address, timeout=LIMIT_S) as client:
            head = (
                f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\n{key}Content-Type: application/json\r\nContent-Length: 30000000\r\n\r\n"
            )
            client.sendall(head.encode())
            assert client.recv(2**16).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs:validate", "/v1/webhooks", "/v1/uploads/presigned"])
@pytest.mark.parametrize("value", [b"[[],", b'{"a":[', b"0,"])
def test_json_of_too_many_values_is_refused(client, path, value):
    answer = client.post(path, content=value * 200_000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    many = value * (900_000 // len(value)) if "jobs" in path else value * (60_000 // len(value))
    answer = client.post(path, content=many, headers={"content-type": "application/json"})
    assert (answer.status_code, "JSON values" in answer.json()["detail"]) == (413, True)


@pytest.mark.parametrize("path", ["/v1/webhooks", "/v1/uploads/presigned", "/v1/jobs", "/v1/uploads", "/v1/batches"])
def test_text_that_is_not_utf_8_is_refused_everywhere(client, path):
    answer = client.post(path, content=b"{}", headers={"content-type": "application/json; charset=utf-7"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("charset", ["punycode", "undefined"])
def test_a_form_in_another_charset_is_refused(client, charset):
    content_type = f"multipart/form-data; boundary=b; charset={charset}"
    answer = client.post("/v1/jobs", content=b"--b\r\n", headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


def test_the_largest_legal_shapes_fit(client):
    shapes = [{"polygon": [[1.2345678901234567 + n / 16, 10.123456789012345 + n % 2 * 9] for n in range(256)]} for _ in range(64)]
    points = [{"handle": [1.2345678901234567, n % 30], "target": [20.123456789012345, n % 30]} for n in range(64)]
    document = DOCUMENT | {"points": points, "movable": {"shapes": shapes}, "metadata": {"a": "x" * 16_000}}
    assert len(json.dumps(document)) > 600_000
    answer = client.post("/v1/jobs", json=document)
    assert answer.status_code == 202, answer.text[:500]


def test_requests_that_wait_for_one_row_hold_up_nobody(client, sessions, neighbour):
    job_id = add_job(sessions)
    with ThreadPoolExecutor(AT_ONCE) as pool, sessions() as holder:
        jobs.get(holder, "default", job_id, lock=True)
        stops = [pool.submit(client.post, f"/v1/jobs/{job_id}/stop") for _ in range(AT_ONCE)]
        wait_until_blocked(sessions, UNKNOWN_TURNS)
        other = {"Authorization": f"Bearer {neighbour}"}
        assert client.get("/healthz").status_code == client.get("/v1/jobs", headers=other).status_code == 200
        assert client.post("/v1/jobs", json=DOCUMENT, headers=other).status_code == 202
        assert not all(stop.done() for stop in stops)
        refused = next(stop.result() for stop in stops)
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "busy", "1")
        holder.rollback()
        assert {stop.result().status_code for stop in stops} <= {200, 503}
    assert client.post(f"/v1/jobs/{job_id}/stop").status_code == 200


@pytest.mark.parametrize("what", ["stop", "cancel", "put", "patch", "delete"])
def test_many_changes_of_one_row_at_once_all_end(client, sessions, what):
    job_id, put_id = add_job(sessions), uuid4()
    webhook = f"/v1/webhooks/{client.post('/v1/webhooks', json=WEBHOOK | {'url': 'https://1.1.1.1/'}).json()['id']}"
    send = {
        "stop": lambda _: client.post(f"/v1/jobs/{job_id}/stop"),
        "cancel": lambda _: client.post(f"/v1/jobs/{job_id}/cancel"),
        "put": lambda _: client.put(f"/v1/jobs/{put_id}", json=DOCUMENT),
        "patch": lambda _: client.patch(webhook, json={"every_job": False}),
        "delete": lambda _: client.delete(f"/v1/jobs/{job_id}"),
    }[what]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = {answer.status_code for answer in pool.map(send, range(AT_ONCE))}
    assert statuses <= ({409} if what == "delete" else {200, 202})


def test_a_list_has_no_specs_unless_they_are_asked_for(client, sessions):
    add_job(sessions)
    assert client.get("/v1/jobs").json()["jobs"][0]["spec"] is None
    assert client.get("/v1/jobs?expand=spec").json()["jobs"][0]["spec"]["source"]["seed"] == 3


def test_a_page_with_specs_ends_at_its_bytes_and_the_next_goes_on(client, sessions):
    add_job(sessions)
    with sessions.begin() as session:
        spec = session.scalar(select(Job.spec)) | {"padding": "x" * (MAX_PAGE_BYTES // 3)}
        session.execute(insert(Job), [
            {"id": uuid4(), "tenant": "default", "model": "tiny", "spec": spec, "priority": 0} for _ in range(7)
        ])  # fmt: skip
    pages, path = [], "/v1/jobs?expand=spec"
    while path:
        page = client.get(path).json()
        pages.append(len(page["jobs"]))
        path = page["next_cursor"] and f"/v1/jobs?expand=spec&cursor={page['next_cursor']}"
    assert pages == [2, 2, 2, 2]


def test_the_quota_of_queued_jobs_is_exact_however_many_are_sent_at_once(client, sessions):
    with sessions.begin() as session:
        session.get(Tenant, "default").max_queued = 20
    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: client.post("/v1/jobs", json=DOCUMENT), range(40))]
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == statuses.count(202) == 20
    assert statuses.count(429) == 20


def test_a_batch_that_takes_what_remains_waits_for_the_jobs_that_no_process_has_counted(settings, sessions, api_key, monkeypatch):
    monkeypatch.setattr(quotas, "FAR", 10)
    monkeypatch.setattr(quotas, "UNCOUNTED_PART", 2)
    defaults = Quotas.from_settings(settings.model_copy(update={"max_queued": 20}))
    single, batch = QueueQuota(defaults), QueueQuota(defaults)  # of two processes
    with sessions.begin() as session:
        single.reserve(session, "default")
    with ThreadPoolExecutor() as pool, sessions() as session:
        insert_jobs(session, 18)
        checked = pool.submit(batch.check_exactly, session, "default", 18)
        with sessions.begin() as other:  # without a count, while the batch waits
            single.reserve(other, "default")
            insert_jobs(other, 3)
        with pytest.raises(QuotaExceeded, match="may have 20 jobs queued, has 21"):
            checked.result()


def insert_jobs(session, count):
    spec = {"source": {"seed": 1}}
    rows = [{"id": uuid4(), "tenant": "default", "model": "tiny", "spec": spec, "priority": 0} for _ in range(count)]
    session.execute(insert(Job), rows)


def test_a_tenant_has_a_bounded_number_of_requests_open(settings, sessions, queue, api_key):
    job_id = add_job(sessions)
    with api_client(settings.model_copy(update={"max_open_requests": 3}), api_key) as client, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(client.get, f"/v1/jobs/{job_id}", headers={"prefer": "wait=60"}) for _ in range(3)]
        while client.app.state.client_limits.open_requests.open["default"] < 3:
            pass
        refused = client.get(f"/v1/jobs/{job_id}")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        with sessions.begin() as session:
            session.execute(text("UPDATE jobs SET state = 'canceled', finished_at = now()"))
        assert {answer.result().status_code for answer in waiting} == {200}
        assert client.get(f"/v1/jobs/{job_id}").status_code == 200


def test_errors_of_the_store_tell_neither_its_address_nor_its_keys(settings, sessions, queue, api_key):
    with api_client(settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}), api_key) as client:
        for answer in (client.post("/v1/uploads", content=b"\x93NUMPY"), client.get("/readyz")):
            assert "127.0.0.1" not in answer.text
            assert settings.s3_bucket not in answer.text
