"""Many jobs sent together."""

import json
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import func, select

from jobs.queue import batches
from jobs.queue.claims import Claimer, claim
from jobs.tables import Batch, Job, Refusal, Tenant, Upload
from tests.services.conftest import api_client
from tests.services.jobs import DOCUMENT, add_job
from tests.services.test_api import png
from tests.services.test_claims import LEASE, take
from worker.execution.runner import Runner


def jsonl(*lines) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def line(custom_id, **change):
    return {"custom_id": custom_id, "job": DOCUMENT | change}


def post(client, body, **headers):
    return client.post("/v1/batches", content=body, headers=headers)


def told(client, batch, what):
    return [json.loads(text) for text in client.get(f"/v1/batches/{batch['id']}/{what}").text.splitlines()]


def count(sessions, table):
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table))


def test_good_lines_are_queued_and_bad_ones_are_told_by_line_and_field(client, queue):
    body = jsonl(line("a"), line("b", model="unknown"), {"job": DOCUMENT}, {"jobs": 1}) + b"\n[\n" + jsonl(line("a"))
    answer = post(client, body)
    batch = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/batches/{batch['id']}")
    assert (batch["lines"], batch["refused"], batch["counts"], batch["finished_at"]) == (6, 4, {"queued": 2}, None)
    errors = told(client, batch, "errors")
    assert [(error["line"], error["custom_id"], error["problems"][0]["field"]) for error in errors] == [
        (2, "b", "model"), (4, None, "line"), (5, None, "line"), (6, None, "custom_id"),
    ]  # fmt: skip
    jobs = client.get("/v1/jobs", params={"batch": batch["id"]}).json()["jobs"]
    assert [job["custom_id"] for job in jobs] == ["3", "a"]
    assert queue.count_messages("default") == 2


def test_results_are_told_in_the_order_of_the_lines(client, settings, sessions, storage, queue):
    batch = post(client, jsonl(line("first"), line("bad", model="missing"), line("second"))).json()
    runner = Runner(settings, sessions, storage, queue)
    for _ in range(3):
        runner.run_next()
    assert client.get(f"/v1/batches/{batch['id']}").json()["counts"] == {"succeeded": 2, "failed": 1}
    assert client.get(f"/v1/batches/{batch['id']}").json()["finished_at"] is not None
    results = told(client, batch, "results")
    assert [(result["custom_id"], result["state"]) for result in results] == [("first", "succeeded"), ("second", "succeeded")]
    assert client.get(results[0]["result"]).status_code == 307
    (error,) = told(client, batch, "errors")
    assert (error["custom_id"], error["state"], error["error"]["code"]) == ("bad", "failed", "checkpoint_missing")


def test_batches_are_listed_from_the_newest(client):
    ids = [post(client, jsonl(line("a"))).json()["id"] for _ in range(3)]
    first = client.get("/v1/batches", params={"limit": 2}).json()
    rest = client.get("/v1/batches", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [batch["id"] for batch in first["batches"] + rest["batches"]] == ids[::-1]


def test_canceling_keeps_what_is_done(client, settings, sessions, storage, queue):
    batch = post(client, jsonl(line("a"), line("b"), line("c"))).json()
    Runner(settings, sessions, storage, queue).run_next()
    running = take(sessions)
    path = f"/v1/batches/{batch['id']}"
    canceled = [client.post(f"{path}/cancel").json() for _ in range(2)][-1]
    assert (canceled["counts"], canceled["cancel_requested_at"] is None) == ({"succeeded": 1, "running": 1, "canceled": 1}, False)
    assert client.get(f"/v1/jobs/{running.id}").json()["cancel_requested"]
    assert [result["custom_id"] for result in told(client, batch, "results")] == ["a"]


@pytest.mark.parametrize("body", [b"", b"\n\n"])
def test_a_batch_without_a_line_is_refused(client, sessions, body):
    assert (post(client, body).json()["code"], count(sessions, Batch)) == ("invalid_job", 0)


def test_a_batch_over_the_limit_is_refused_whole(client, sessions):
    answer = post(client, jsonl(line("a")) + b"0\n" * batches.MAX_LINES)
    assert f"may have {batches.MAX_LINES} lines" in answer.json()["detail"]
    assert [count(sessions, table) for table in (Batch, Job, Refusal)] == [0, 0, 0]


def test_a_batch_over_the_quota_is_refused_whole(client, sessions):
    with sessions.begin() as session:
        session.get(Tenant, "default").max_queued = 2
    answer = post(client, jsonl(*(line(str(k)) for k in range(3))))
    assert (answer.status_code, answer.json()["code"], count(sessions, Job)) == (429, "quota_exceeded", 0)


def test_a_line_without_an_end_takes_no_memory(client):
    body = b'{"custom_id": "' + b"x" * (3 * batches.MAX_LINE_BYTES) + b'"}\n' + jsonl(line("a"))
    batch = post(client, body).json()
    assert (batch["lines"], batch["refused"]) == (2, 1)
    assert f"may have {batches.MAX_LINE_BYTES} bytes" in told(client, batch, "errors")[0]["problems"][0]["message"]


def test_a_batch_sent_twice_with_a_key_is_one(client, sessions):
    body = jsonl(line("a"))
    first, second = (post(client, body, **{"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.json(), second.headers["idempotency-replayed"]) == (second.json(), "true")
    assert (count(sessions, Batch), count(sessions, Job)) == (1, 1)
    assert post(client, jsonl(line("b")), **{"Idempotency-Key": "k"}).json()["code"] == "key_reused"


def test_a_batch_never_goes_before_jobs_that_somebody_waits_for(client, sessions):
    post(client, jsonl(line("a", priority=100), line("b")))
    other = add_job(sessions, tenant="other", priority=-100)
    mine = add_job(sessions)
    assert {take(sessions).id for _ in range(2)} == {mine, other}
    assert [take(sessions).custom_id for _ in range(2)] == ["a", "b"]


def test_batches_of_several_tenants_take_turns(client, sessions):
    post(client, jsonl(*(line(str(k)) for k in range(3))))
    with sessions.begin() as session:
        session.add(Tenant(id="other"))
        session.flush()
    other = [add_job(sessions, tenant="other") for _ in range(2)]
    with sessions.begin() as session:
        for job in other:
            session.get(Job, job).priority -= 1000
    with sessions.begin() as session:
        order = [claim(session, Claimer(worker="w", lease=LEASE)).tenant for _ in range(4)]
    assert sorted(order[:2]) == sorted(order[2:]) == ["default", "other"]


@pytest.mark.parametrize(
    "bad", ['{"custom_id": "\\ud800", "job": {}}', '{"job": {"x\\u0000y": 1}}', '{"job": {"\\ud800": 1}}', '{"job": 3}']
)
def test_a_line_that_nothing_can_store_keeps_nobody_else_out(client, bad):
    batch = post(client, bad.encode() + b"\n" + jsonl(line("a"))).json()
    assert (batch["lines"], batch["refused"]) == (2, 1)
    assert told(client, batch, "errors")[0]["problems"]


def test_while_the_store_is_away_no_line_is_refused_for_it(settings, sessions, api_key, client):
    mask = client.post("/v1/uploads?kind=mask", content=png(np.ones((32, 32), dtype=bool))).json()["sha256"]
    with sessions.begin() as session:
        session.get(Upload, ("default", mask)).outline = None  # as from before there were outlines
    with api_client(settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}), api_key) as cut_off:
        answer = post(cut_off, jsonl(line("a", movable={"upload": mask})))
    assert (answer.status_code, answer.json()["code"], count(sessions, Batch)) == (503, "storage_unavailable", 0)


def test_a_batch_does_not_go_before_others_while_its_tenants_job_rests(client, sessions):
    post(client, jsonl(line("a")))
    resting = add_job(sessions)
    with sessions.begin() as session:
        session.get(Job, resting).not_before = func.now() + timedelta(minutes=1)
    other = add_job(sessions, tenant="other")
    assert [take(sessions).id == other, take(sessions).custom_id] == [True, "a"]
