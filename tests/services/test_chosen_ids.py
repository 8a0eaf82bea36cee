"""Ids that clients choose: each tenant has its own, and learns nothing of the others'."""

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql

from jobs.queue.jobs import select_job
from jobs.tables import Job
from tests.receivers import receiving
from tests.services.conftest import api_client, make_key
from tests.services.jobs import DOCUMENT, add_job
from tests.services.telling import QUICK, create, deliver, log
from tests.services.test_claims import rows_read
from tests.services.test_photos import photo
from tests.services.watching import wait_until
from worker.execution.runner import Runner

CHOSEN = "6f3c1c53-3a5c-4f5f-9d0e-51f4a6f7a003"
HERE = f"/v1/jobs/{CHOSEN}"
SHORT = DOCUMENT | {"drag": {"max_iterations": 3}, "output": {"frames_every": 1, "animation": [], "overlay": False}}
TIMES = ("created_at", "started_at", "finished_at", "expires_at")
MANY_JOBS = """
    INSERT INTO jobs (id, client_id, tenant, model, spec, priority)
    SELECT gen_random_uuid(), gen_random_uuid(), 'default', 'tiny', '{}', 0 FROM generate_series(1, 5000)
"""


@pytest.fixture
def settings(settings):
    return settings.model_copy(update=QUICK)


@pytest.fixture
def other(client, settings, sessions):
    """A client of another tenant, of an API process of its own."""
    with api_client(settings, make_key(sessions, "other")) as other:
        yield other


@pytest.fixture
def runner(settings, sessions, storage, queue):
    return Runner(settings, sessions, storage, queue)


def shown(answer, job_id):
    """What an answer says, but for times and the id that was asked for."""
    body = json.loads(answer.text.replace(job_id, "ID"))
    return answer.status_code, sorted(answer.headers), {name: body[name] for name in body if name not in TIMES}


def only_row(sessions, tenant="default"):
    with sessions() as session:
        return session.scalars(select(Job).where(Job.tenant == tenant)).one()


def test_a_client_may_choose_the_id(client, sessions):
    path = "/v1/jobs/6f3c1c53-3a5c-4f5f-9d0e-51f4a6f7a001"
    answers = [client.put(path, json=DOCUMENT) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == path.rpartition("/")[2]
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1
    assert client.put(path, json=DOCUMENT | {"priority": 3}).json()["code"] == "id_taken"


def test_a_job_put_again_is_shown_when_what_it_was_made_from_is_gone(client, sessions):
    path = "/v1/jobs/6f3c1c53-3a5c-4f5f-9d0e-51f4a6f7a002"
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    job = {"model": "tiny", "source": {"upload": sha256}}
    assert client.put(path, json=job).status_code == 202
    client.post(f"{path}/cancel")
    assert client.delete(f"/v1/uploads/{sha256}").status_code == 204
    again = client.put(path, json=job)
    assert (again.status_code, again.json()["state"]) == (202, "canceled")


def test_an_id_of_another_tenant_is_answered_as_a_free_one(client, other, sessions):
    assert other.put(HERE, json=DOCUMENT | {"priority": 3}).status_code == 202
    ids = [CHOSEN, str(only_row(sessions, "other").id), str(add_job(sessions, tenant="other")), str(uuid4())]
    for document in (DOCUMENT, DOCUMENT, DOCUMENT | {"priority": 7}, DOCUMENT | {"model": "unknown"}):  # new, again, others
        answers = [shown(client.put(f"/v1/jobs/{job_id}", json=document), job_id) for job_id in ids]
        assert answers == [answers[-1]] * len(ids)
    assert answers[0][0] == 422
    assert len({str(shown(client.delete(f"/v1/jobs/{job_id}"), job_id)) for job_id in ids}) == 1
    assert other.get(HERE).json()["spec"]["priority"] == 3


def test_an_id_of_another_tenant_is_not_found_like_a_free_one(client, other, sessions):
    other.put(HERE, json=DOCUMENT)
    ids = [CHOSEN, str(only_row(sessions, "other").id), str(uuid4())]
    paths = ["", "/frames", "/artifacts", "/artifacts/result.png", "/archive", "/events"]
    asked = [("GET", path) for path in paths] + [("POST", path) for path in ("/stop", "/cancel", "/retry")] + [("DELETE", "")]
    for method, path in asked:
        answers = [shown(client.request(method, f"/v1/jobs/{job_id}{path}"), job_id) for job_id in ids]
        assert [answer[0] for answer in answers] == [404] * 3
        assert answers == [answers[-1]] * 3
    sources = [shown(client.post("/v1/jobs", json=DOCUMENT | {"source": {"job": job_id}}), job_id) for job_id in ids]
    assert (sources[0][0], sources) == (404, [sources[-1]] * 3)


def test_two_tenants_work_with_jobs_under_the_same_id(client, other, deliverer, runner, sessions):
    results = []
    with receiving() as mine, receiving() as theirs:
        for who, seed, receiver in ((client, 1, mine), (other, 2, theirs)):
            webhook = create(who, receiver)
            assert who.put(HERE, json=SHORT | {"source": {"seed": seed}}).json()["id"] == CHOSEN
            runner.run_next()
            job = who.get(HERE, params={"expand": "artifacts"}).json()
            assert (job["id"], job["state"], job["spec"]["source"]["seed"]) == (CHOSEN, "succeeded", seed)
            assert job["links"]["self"] == HERE
            assert {link.startswith(HERE) for link in job["links"].values()} == {True}
            frames = who.get(f"{HERE}/frames").json()["frames"]
            listed = [*job["artifacts"], *who.get(f"{HERE}/artifacts").json()["artifacts"], *frames]
            assert {artifact["url"] for artifact in listed} == {f"{HERE}/artifacts/{artifact['name']}" for artifact in listed}
            redirect = who.get(frames[0]["url"])
            assert (redirect.status_code, f"{CHOSEN}-frames" in redirect.headers["location"]) == (307, True)
            archive = who.get(f"{HERE}/archive")
            assert archive.headers["content-disposition"] == f'attachment; filename="{CHOSEN}.zip"'
            assert len(zipfile.ZipFile(io.BytesIO(archive.content)).namelist()) == len(job["artifacts"]) + len(frames)
            stream = who.get(f"{HERE}/events", headers={"Last-Event-ID": "0"}).text
            assert [line for line in stream.splitlines() if line.startswith("event:")] == [
                "event: job.queued", "event: job.running", "event: job.succeeded", "event: snapshot",
            ]  # fmt: skip
            assert f'"id":"{CHOSEN}"' in stream
            deliver(deliverer)
            assert [json.loads(request.body)["data"]["job"] for request in receiver.all()] == [CHOSEN]
            assert [line["job"] for line in log(who, webhook)] == [CHOSEN]
            assert [line["id"] for line in who.get("/v1/jobs").json()["jobs"]] == [CHOSEN]
            results.append({artifact["name"]: artifact["sha256"] for artifact in job["artifacts"]}["result.png"])
        assert results[0] != results[1]
        assert mine.all() == theirs.all() == []


def test_what_is_asked_of_a_job_changes_no_other_tenants(client, other):
    for who in (client, other):
        who.put(HERE, json=DOCUMENT)
    stopped = client.post(f"{HERE}/stop").json()
    assert (stopped["id"], stopped["stop_requested"]) == (CHOSEN, True)
    canceled = client.post(f"{HERE}/cancel").json()
    assert (canceled["id"], canceled["state"]) == (CHOSEN, "canceled")
    theirs = other.get(HERE).json()
    assert (theirs["state"], theirs["stop_requested"]) == ("queued", False)
    assert client.delete(HERE).status_code == 204
    assert (client.get(HERE).status_code, other.get(HERE).status_code) == (404, 200)
    assert [(line["action"], line["subject"]) for line in client.get("/v1/audit").json()["lines"]] == [
        ("job.delete", CHOSEN), ("job.cancel", CHOSEN),
    ]  # fmt: skip


def test_an_id_is_free_again_when_its_job_is_deleted(client, sessions):
    client.put(HERE, json=DOCUMENT)
    before = only_row(sessions).id
    client.post(f"{HERE}/cancel")
    assert client.delete(HERE).status_code == 204
    again = client.put(HERE, json=DOCUMENT | {"priority": 3})
    assert (again.status_code, again.json()["state"], again.json()["id"]) == (202, "queued", CHOSEN)
    assert only_row(sessions).id != before


def test_jobs_go_on_from_a_job_under_its_chosen_id_and_name_it_also_when_it_is_gone(client, other, runner):
    for who in (client, other):
        who.put(HERE, json=SHORT)
        runner.run_next()
    child = client.post("/v1/jobs", json=SHORT | {"source": {"job": CHOSEN}}).json()
    assert (child["parent"], child["root"]) == (CHOSEN, CHOSEN)
    runner.run_next()
    own = f"/v1/jobs/{uuid4()}"
    grandchild = client.put(own, json=SHORT | {"source": {"job": child["id"]}}).json()
    assert (grandchild["parent"], grandchild["root"]) == (child["id"], CHOSEN)
    runner.run_next()
    retried = client.post(f"{own}/retry").json()
    assert (retried["parent"], retried["root"]) == (child["id"], CHOSEN)
    assert retried["id"] not in own
    assert client.delete(HERE).status_code == 204
    left = client.get(child["links"]["self"]).json()
    assert (left["parent"], left["root"], left["state"]) == (None, CHOSEN, "succeeded")
    assert client.post(f"{HERE}/retry").status_code == 404
    again = other.post(f"{HERE}/retry")
    assert (again.status_code, again.json()["spec"]) == (202, other.get(HERE).json()["spec"])


def test_an_id_that_the_tenants_own_job_was_given_or_had_before_is_taken(client, sessions):
    posted = client.post("/v1/jobs", json=DOCUMENT).json()  # a job that was PUT before migration 0017 has such a row too
    assert client.put(posted["links"]["self"], json=DOCUMENT | {"priority": 3}).json()["code"] == "id_taken"
    again = client.put(posted["links"]["self"], json=DOCUMENT)
    assert (again.status_code, again.json()["id"]) == (202, posted["id"])
    assert only_row(sessions).client_id is None


def test_messages_name_a_job_by_its_chosen_id(client):
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    client.put(HERE, json={"model": "tiny", "source": {"upload": sha256}})
    refused = [
        client.delete(f"/v1/uploads/{sha256}"), client.delete(HERE), client.post(f"{HERE}/retry"),
        client.get(f"{HERE}/artifacts/result.png"), client.post("/v1/jobs", json=DOCUMENT | {"source": {"job": CHOSEN}}),
    ]  # fmt: skip
    assert [answer.status_code for answer in refused] == [409, 409, 409, 404, 409]
    assert {f"job {CHOSEN} " in answer.json()["detail"] for answer in refused} == {True}


def test_an_id_put_many_times_at_once_is_one_job_of_each_tenant(client, other, sessions):
    def put(who):
        return who.put(HERE, json=DOCUMENT).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(put, [client, other] * 8)) == {202}
    assert only_row(sessions).client_id == only_row(sessions, "other").client_id == UUID(CHOSEN)


def test_who_waits_for_a_job_under_its_chosen_id_waits_for_its_row(client, sessions):
    client.put(HERE, json=DOCUMENT)
    etag = client.get(HERE).headers["etag"]
    waiters = client.app.state.change_notifier.waiters
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, HERE, headers={"If-None-Match": etag, "Prefer": "wait=60"})
        assert wait_until(lambda: list(waiters), "waiter") == [only_row(sessions).id]
        client.post(f"{HERE}/cancel")
        assert waiting.result().json()["state"] == "canceled"


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("column", [Job.id, Job.client_id], ids=["of-its-row", "chosen"])
def test_a_job_is_found_by_either_id_in_two_indexes_however_many_there_are(sessions, client, column, analyzed):
    with sessions.begin() as session:
        session.execute(text(MANY_JOBS))
        session.execute(text("ANALYZE jobs" if analyzed else "SELECT 1"))
        wanted = session.scalar(select(column).limit(1))
        query = select_job("default", wanted).compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
        plan = session.scalar(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}"))[0]["Plan"]
    assert {"ix_jobs_tenant_client_id", "pk_jobs"} == set(indexes(plan))
    assert max(rows_read(plan)) == 1


def indexes(node):
    """The indexes that a plan reads."""
    return [name for name in [node.get("Index Name")] if name] + [
        name for part in node.get("Plans", []) for name in indexes(part)
    ]
