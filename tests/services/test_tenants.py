"""Nothing of one tenant reaches another: every route, with the other's ids."""

import json
import re
from uuid import uuid4

import pytest
from sqlalchemy import text

from jobs.queue.claims import Claimer, claim
from jobs.tables import Webhook
from tests.services.conftest import api_client, make_key
from tests.services.jobs import DOCUMENT, add_job
from tests.services.test_claims import LEASE, MANY_JOBS
from tests.services.test_photos import photo
from worker.execution.runner import Runner

DEEP = 10_000  # jobs that a greedy tenant has queued


@pytest.fixture
def theirs(client, settings, sessions, storage, queue):
    """Something of everything, of the default tenant."""
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    job = client.post("/v1/jobs", json=DOCUMENT | {"metadata": {"secret": "theirs"}}).json()["id"]
    Runner(settings, sessions, storage, queue).run_next()
    batch = client.post("/v1/batches", content=json.dumps({"custom_id": "theirs", "job": DOCUMENT}).encode()).json()["id"]
    file = client.post("/v1/uploads/presigned", json={"sha256": "0" * 64, "size_bytes": 9}).json()["id"]
    webhook = uuid4()
    with sessions.begin() as session:
        session.add(
            Webhook(id=webhook, tenant="default", url="https://theirs", events=["job.failed"], every_job=True, secrets=["a"])
        )
    return {"job_id": job, "sha256": sha256, "batch_id": batch, "webhook_id": str(webhook), "presigned_id": file}


@pytest.fixture
def stranger(settings, sessions):
    with api_client(settings, make_key(sessions, "other")) as stranger:
        yield stranger


def operations(client):
    document = client.get("/openapi.json").json()
    return [(method, path) for path, methods in document["paths"].items() for method in methods if path.startswith("/v1")]


def test_the_ids_of_a_tenant_are_unknown_to_others_on_every_route(client, stranger, theirs):
    names = theirs | {"name": "result.png", "delivery_id": str(uuid4())}
    nobodys = {name: "0" * 64 if name == "sha256" else str(uuid4()) for name in names} | {"name": "result.png"}
    asked = 0
    for method, path in operations(client):
        if any(f"{{{name}}}" in path for name in theirs) and method != "put":  # that would make the job of an unknown id
            body = {"patch": {"json": {"every_job": False}}, "post": {"json": {}}}.get(method, {})
            answer, unknown = (stranger.request(method, path.format_map(ids), **body) for ids in (names, nobodys))
            assert (method, path, answer.status_code) == (method, path, 404)
            assert blank(answer) == blank(unknown)
            asked += 1
    assert asked >= 20
    assert client.get(f"/v1/jobs/{theirs['job_id']}").json()["state"] == "succeeded"


def blank(answer):
    """Without the ids that it repeats."""
    return answer.status_code, re.sub(r"[0-9a-f]{64}|[0-9a-f-]{36}", "ID", answer.text)


def test_lists_and_counts_show_a_tenants_own(client, stranger, theirs):
    for method, path in operations(client):
        if method == "get" and "{" not in path and path not in ("/v1/models",):
            answer = stranger.get(path)
            assert (path, answer.status_code) == (path, 200)
            text = answer.text
            assert not any(value in text for value in (*theirs.values(), "theirs")), path
    assert stranger.get("/v1/usage").json()["queued"] == stranger.get("/v1/queue").json()["queued"] == 0


def test_what_a_tenant_uploaded_cannot_be_built_on_by_another(stranger, theirs):
    for source in ({"upload": theirs["sha256"]}, {"latent": theirs["sha256"]}, {"job": theirs["job_id"]}):
        answer = stranger.post("/v1/jobs", json={"model": "tiny", "source": source})
        assert (answer.status_code, answer.json()["code"]) in ((404, "upload_not_found"), (404, "job_not_found"))


def test_idempotency_keys_are_a_tenants_own(client, stranger):
    key = {"Idempotency-Key": "order 1"}
    first, second = client.post("/v1/jobs", json=DOCUMENT, headers=key), stranger.post("/v1/jobs", json=DOCUMENT, headers=key)
    assert first.json()["id"] != second.json()["id"]


def test_a_tenant_with_ten_thousand_queued_jobs_delays_anothers_first_by_one_job_per_worker(sessions):
    with sessions.begin() as session:
        for _ in range(DEEP // 5000):
            session.execute(text(MANY_JOBS.format(model="tiny", state="queued")))
    workers = 3
    with sessions.begin() as session:
        for number in range(workers):
            assert claim(session, Claimer(worker=str(number), lease=LEASE, warm=["tiny"])).tenant == "default"
    mine = add_job(sessions, tenant="other")
    with sessions.begin() as session:
        assert claim(session, Claimer(worker="the first that is free", lease=LEASE, warm=["tiny"])).id == mine
