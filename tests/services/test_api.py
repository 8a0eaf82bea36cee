import io
import json

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import func, select

from api.dependencies import manifest_file
from jobs.tables import Job
from tests.services.conftest import api_client
from tests.services.jobs import DOCUMENT, add_job


def png(mask) -> bytes:
    out = io.BytesIO()
    Image.fromarray(mask).save(out, format="PNG")
    return out.getvalue()


def stored(sessions) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(Job))


def test_a_job_is_accepted_stored_and_announced(client, queue):
    answer = client.post("/v1/jobs", json=DOCUMENT)
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert (job["state"], job["attempt"], job["spec"]["drag"]["learning_rate"]) == ("queued", 0, 0.002)
    seen = client.get(answer.headers["location"]).json()
    assert seen == job | {"place": {"position": 0, "starts_in_s": None}}
    assert queue.count_messages("default") == 1


def test_a_mask_comes_as_a_part_and_is_stored_under_its_hash(client, storage):
    mask = np.zeros((32, 32), dtype=bool)
    mask[4:20, 4:20] = True
    answer = client.post("/v1/jobs", files={"job": json.dumps(DOCUMENT).encode(), "movable": png(mask)})
    assert answer.status_code == 202
    sha256 = answer.json()["spec"]["movable"]["upload"]
    with Image.open(io.BytesIO(storage.get(f"t/default/u/{sha256}"))) as image:
        assert (np.asarray(image) == mask).all()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"json": DOCUMENT | {"model": "unknown"}}, "model"),
        ({"json": DOCUMENT | {"points": [{"handle": [40, 1], "target": [2, 2]}]}}, "points[0].handle"),
        ({"json": DOCUMENT | {"points": [{"handle": [4, 1], "target": [4, 1]}]}}, "points[0].target"),
        ({"json": DOCUMENT | {"points": DOCUMENT["points"] * 65}}, "points"),
        ({"json": DOCUMENT | {"more": 1}}, "more"),
        ({"content": json.dumps(DOCUMENT).replace("10, 10", "NaN, 10")}, "points[0].handle[0]"),
        ({"content": b"{"}, "job"),
        ({"content": b"[" * 50_000}, "job"),
        ({"files": {"job": json.dumps(DOCUMENT).encode(), "movable": png(np.zeros((32, 32), dtype=bool))}}, "movable"),
        ({"files": {"job": json.dumps(DOCUMENT).encode(), "movable": png(np.ones((8, 8), dtype=bool))}}, "movable"),
        ({"files": {"movable": png(np.ones((32, 32), dtype=bool))}}, "job"),
        ({"files": {"job": b"{}", "picture": b""}}, "picture"),
        ({"files": [("job", b"{}"), ("job", b"{}")]}, "body"),
        ({"content": b"x", "headers": {"content-type": "Multipart/Form-Data"}}, "body"),
        ({"json": DOCUMENT | {"metadata": {"a": "\x00"}}}, "metadata"),
    ],
)
def test_bad_input_is_refused_by_field_and_nothing_is_stored(client, sessions, queue, request_, field):
    answer = client.post("/v1/jobs", **request_)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    problem = answer.json()
    assert (problem["code"], problem["status"], [error["field"] for error in problem["errors"]]) == ("invalid_job", 422, [field])
    assert (stored(sessions), queue.count_messages("default")) == (0, 0)


def test_a_body_over_the_limit_is_refused(client, settings):
    answer = client.post("/v1/jobs", content=b" " * (settings.max_body_bytes + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert str(settings.max_body_bytes) in answer.json()["detail"]


def test_a_body_that_hides_its_length_is_cut_off(client, settings):
    def chunks():
        for _ in range(settings.max_body_bytes // 2**16 + 1):
            yield b" " * 2**16

    answer = client.post("/v1/jobs", content=chunks())
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_job_is_accepted_while_the_broker_is_away(settings, sessions, api_key):
    with api_client(settings.model_copy(update={"redis_url": "redis://127.0.0.1:9"}), api_key) as client:
        assert client.post("/v1/jobs", json=DOCUMENT).status_code == 202
        assert client.get("/readyz").json()["problems"] == ["broker"]
    assert stored(sessions) == 1


def test_while_the_database_is_away_nothing_is_accepted(settings):
    with api_client(settings.model_copy(update={"database_url": "postgresql+psycopg://app@127.0.0.1:9/app"}), "dq_1_2") as client:
        answer = client.post("/v1/jobs", json=DOCUMENT)
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "database_unavailable", "5")
        assert client.get("/readyz").status_code == 503


def test_while_the_store_is_away_a_mask_cannot_be_posted(settings, sessions, api_key):
    mask = png(np.ones((32, 32), dtype=bool))
    with api_client(settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}), api_key) as client:
        answer = client.post("/v1/jobs", files={"job": json.dumps(DOCUMENT).encode(), "movable": mask})
    assert (answer.status_code, answer.json()["code"], stored(sessions)) == (503, "storage_unavailable", 0)


def test_jobs_are_listed_in_pages_from_the_newest(client, sessions):
    ids = [str(add_job(sessions)) for _ in range(5)]
    first = client.get("/v1/jobs", params={"limit": 3}).json()
    rest = client.get("/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == ids[::-1]
    assert rest["next_cursor"] is None


def test_the_list_is_filtered(client, sessions):
    add_job(sessions)
    other = str(add_job(sessions, model="other"))
    assert [job["id"] for job in client.get("/v1/jobs", params={"model": "other"}).json()["jobs"]] == [other]
    assert client.get("/v1/jobs", params={"state": "failed"}).json()["jobs"] == []


def test_a_waiting_job_is_canceled_once_and_stays_so(client, sessions):
    path = f"/v1/jobs/{add_job(sessions)}"
    assert [client.post(f"{path}/cancel").json()["state"] for _ in range(2)] == ["canceled", "canceled"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/jobs/00000000-0000-0000-0000-000000000000", 404, "job_not_found"),
        ("POST", "/v1/jobs/00000000-0000-0000-0000-000000000000/cancel", 404, "job_not_found"),
        ("GET", "/v1/jobs/00000000-0000-0000-0000-000000000000/frames", 404, "job_not_found"),
        ("GET", "/v1/jobs/17", 422, "invalid_parameters"),
        ("GET", "/v1/jobs?limit=9999", 422, "invalid_parameters"),
        ("GET", "/v1/jobs?state=done", 422, "invalid_parameters"),
        ("GET", "/v1/jobs?model=%00", 422, "invalid_parameters"),
        ("GET", f"/v1/jobs?cursor={'9' * 30}", 422, "invalid_parameters"),
        ("GET", "/v1/jobs/00000000-0000-0000-0000-000000000000/frames?cursor=%00", 422, "invalid_parameters"),
        ("GET", "/v1/jobs/00000000-0000-0000-0000-000000000000/artifacts/a%00b", 422, "invalid_parameters"),
        ("GET", "/v2", 404, "http_error"),
        ("DELETE", "/v1/jobs", 405, "http_error"),
    ],
)
def test_every_refusal_is_a_problem_document(client, method, path, status, code):
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["code"] == code


@pytest.mark.parametrize("path", ["/v1/uploads/presigned", "/v1/webhooks"])
@pytest.mark.parametrize("body", [b"\xff\xfe", b"{", b"[]"])
def test_a_body_that_is_no_json_object_is_refused_as_such(client, path, body):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")


def test_a_defect_of_the_service_is_a_problem_document_too(settings, api_key):
    with api_client(settings, api_key, raise_server_exceptions=False) as client:
        client.app.dependency_overrides[manifest_file] = lambda: None
        answer = client.post("/v1/jobs", json=DOCUMENT)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")


def test_an_artifact_that_is_not_there_is_404(client, sessions):
    answer = client.get(f"/v1/jobs/{add_job(sessions)}/artifacts/result.png")
    assert (answer.status_code, answer.json()["code"]) == (404, "artifact_not_found")


def test_models_are_listed_with_what_their_jobs_take(client):
    models = client.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == ["damaged", "missing", "slow", "tiny"]
    tiny = client.get("/v1/models/tiny").json()
    assert tiny == models[-1]
    expected = {
        "resolution": 32,
        "num_ws": 8,
        "classes": 0,
        "truncation_psi": 0.7,
        "learning_rate": 0.002,
        "feature_resolution": 16,
    }
    assert {name: tiny[name] for name in expected} == expected
    answer = client.get("/v1/models/unknown")
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def test_health_is_told(client):
    assert client.get("/healthz").json() == {"status": "ok", "problems": []}
    assert client.get("/readyz").json() == {"status": "ok", "problems": []}


def test_the_contract_can_be_read(client):
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    references = set(part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:])
    assert references <= set(document["components"]["schemas"])
