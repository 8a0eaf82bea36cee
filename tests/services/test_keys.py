"""Who may do what, how often, and how much of it."""

import asyncio
import re
from datetime import timedelta
from types import NoneType
from uuid import uuid4

import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from api.app import create_app
from api.auth import RateLimits
from cli.main import app
from jobs.errors import RateLimited, Unauthorized
from jobs.tables import ApiKey, AuditLine, Tenant
from jobs.tenants import keys, quotas
from jobs.tenants.keys import Scope
from tests.services.conftest import api_client, make_key
from tests.services.jobs import DOCUMENT, add_job
from tests.services.test_photos import photo
from worker.execution.runner import Runner


def authenticate(sessions, token):
    with sessions.begin() as session:
        return keys.authenticate(session, token)


@pytest.fixture
def uncached_client(settings, queue, api_key):
    """The API, asking the database about the key of every request."""
    with api_client(settings, api_key, app=create_app(settings, api_key_cached_s=0)) as client:
        yield client


def test_a_key_says_whose_it_is_and_only_its_hash_is_stored(sessions):
    token = make_key(sessions, "acme", [Scope.READ])
    principal = authenticate(sessions, token)
    assert (principal.tenant, principal.scopes) == ("acme", {Scope.READ})
    assert (principal.may(Scope.READ), principal.may(Scope.SUBMIT)) == (True, False)
    with sessions() as session:
        row = session.get(ApiKey, principal.key)
        assert token.split("_", 2)[2].encode() not in row.secret_sha256
        assert row.last_used_at is not None


@pytest.mark.parametrize(
    "spoil", [str.upper, lambda token: token[:-1], lambda token: "x" + token, lambda token: "", lambda token: "dq__"]
)
def test_what_is_no_key_is_nobodys(sessions, api_key, spoil):
    with pytest.raises(Unauthorized):
        authenticate(sessions, spoil(api_key))


def test_a_secret_of_another_key_does_not_fit(sessions, api_key):
    prefix, key_id, _ = api_key.split("_", 2)
    other = make_key(sessions).split("_", 2)[2]
    with pytest.raises(Unauthorized):
        authenticate(sessions, f"{prefix}_{key_id}_{other}")


def test_keys_expire(sessions):
    with sessions.begin() as session:
        token = keys.create(session, "default", "", [Scope.READ], timedelta(hours=1))
    assert authenticate(sessions, token).tenant == "default"
    with sessions.begin() as session:
        session.execute(update(ApiKey).values(expires_at=ApiKey.created_at))
    with pytest.raises(Unauthorized):
        authenticate(sessions, token)


def test_a_revoked_key_is_refused(uncached_client, sessions, api_key):
    assert uncached_client.get("/v1/jobs").status_code == 200
    with sessions.begin() as session:
        keys.revoke(session, api_key.split("_")[1])
    answer = uncached_client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"], answer.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")


def test_a_rotated_key_is_valid_beside_its_successor_for_a_while(sessions, api_key):
    with sessions.begin() as session:
        successor = keys.rotate(session, api_key.split("_")[1], timedelta(hours=1))
    assert authenticate(sessions, api_key).scopes == authenticate(sessions, successor).scopes
    with sessions.begin() as session:
        keys.rotate(session, successor.split("_")[1], timedelta(0))
    with pytest.raises(Unauthorized):
        authenticate(sessions, successor)


def test_without_a_key_nothing_but_the_health_is_told(client):
    del client.headers["authorization"]
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            if path.startswith("/v1"):
                answer = client.request(method, re.sub(r"{\w+}", str(uuid4()), path))
                assert (method, path, answer.status_code) == (method, path, 401)


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        (Scope.READ, "GET", "/v1/jobs", 200),
        (Scope.READ, "GET", "/v1/usage", 200),
        (Scope.READ, "POST", "/v1/jobs", 403),
        (Scope.READ, "POST", "/v1/batches", 403),
        (Scope.READ, "DELETE", f"/v1/jobs/{uuid4()}", 403),
        (Scope.READ, "GET", "/v1/audit", 403),
        (Scope.SUBMIT, "POST", "/v1/jobs", 422),
        (Scope.SUBMIT, "GET", "/v1/jobs", 403),
        (Scope.SUBMIT, "GET", "/v1/audit", 403),
        (Scope.ADMIN, "GET", "/v1/audit", 200),
        (Scope.ADMIN, "GET", "/v1/jobs", 200),
        (Scope.ADMIN, "POST", "/v1/jobs", 422),
    ],
)
def test_a_key_opens_what_its_scopes_say(settings, sessions, queue, scope, method, path, status):
    with api_client(settings, make_key(sessions, scopes=[scope])) as client:
        assert client.request(method, path, json=None if method == "GET" else {}).status_code == status


def test_requests_a_minute_are_limited_by_key(uncached_client, sessions, settings):
    with sessions.begin() as session:
        session.get(Tenant, "default").requests_per_minute = 3
    answers = [uncached_client.get("/v1/jobs") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert (answers[-1].json()["code"], answers[-1].headers["retry-after"]) == ("rate_limited", "5")
    with api_client(settings, make_key(sessions, "other")) as other:
        assert other.get("/v1/jobs").status_code == 200


def test_requests_at_the_same_time_are_each_counted_once(settings, queue):
    principal = keys.Principal(tenant="t", key=uuid4().hex, scopes=frozenset(), requests_per_minute=3000)

    async def count_rounds():
        limits, admitted = RateLimits(settings), 0
        for _ in range(90):
            requests = (limits.count(principal, submits=False) for _ in range(50))
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {NoneType, RateLimited}
            admitted += outcomes.count(None)
        paused = limits.paused_until > 0
        await limits.close()
        return admitted, paused

    admitted, paused = asyncio.run(count_rounds())
    assert not paused  # Redis has counted all of them
    assert 2990 <= admitted <= 3060  # of 4500; a few more when a new minute begins


def test_submissions_a_minute_are_limited_too(uncached_client, sessions):
    with sessions.begin() as session:
        session.get(Tenant, "default").submits_per_minute = 1
    assert [uncached_client.post("/v1/jobs", json=DOCUMENT).status_code for _ in range(2)] == [202, 429]
    assert uncached_client.get("/v1/jobs").status_code == 200


def test_who_has_too_many_jobs_waiting_is_told_so(client, sessions):
    with sessions.begin() as session:
        session.get(Tenant, "default").max_queued = 1
    first, second = (client.post("/v1/jobs", json=DOCUMENT) for _ in range(2))
    assert (first.status_code, second.status_code, second.json()["code"]) == (202, 429, "quota_exceeded")
    assert "may have 1 jobs queued, has 1" in second.json()["detail"]
    client.post(f"/v1/jobs/{first.json()['id']}/cancel")
    assert client.post("/v1/jobs", json=DOCUMENT).status_code == 202


def test_who_has_too_many_uploads_can_delete_some(client, sessions):
    with sessions.begin() as session:
        session.get(Tenant, "default").max_uploads = 1
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    assert client.post("/v1/uploads", content=photo(seed=3)).json()["code"] == "quota_exceeded"
    assert client.delete(f"/v1/uploads/{sha256}").status_code == 204
    assert client.post("/v1/uploads", content=photo(seed=3)).status_code == 201


def test_an_upload_that_a_job_needs_is_not_deleted(client):
    sha256 = client.post("/v1/uploads", content=photo()).json()["sha256"]
    job = client.post("/v1/jobs", json={"model": "tiny", "source": {"upload": sha256}}).json()
    assert client.delete(f"/v1/uploads/{sha256}").json()["code"] == "upload_in_use"
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/uploads/{sha256}").status_code == 204


def test_stored_bytes_are_measured_and_limited(client, settings, sessions, storage, queue):
    add_job(sessions)
    Runner(settings, sessions, storage, queue).run_next()
    with sessions.begin() as session:
        assert "default" in quotas.list_unmeasured(session, 10)
        quotas.measure_stored_bytes(session, "default")
        assert "default" not in quotas.list_unmeasured(session, 10)  # not again so soon
    (job,) = client.get("/v1/jobs").json()["jobs"]
    stored = client.get(f"/v1/jobs/{job['id']}/artifacts").json()["artifacts"]
    stored += client.get(f"/v1/jobs/{job['id']}/frames").json()["frames"]
    assert client.get("/v1/usage").json()["stored_bytes"] == sum(artifact["size_bytes"] for artifact in stored) > 0
    with sessions.begin() as session:
        session.get(Tenant, "default").max_stored_bytes = 1
    assert client.post("/v1/jobs", json=DOCUMENT).json()["code"] == "quota_exceeded"


def test_what_cannot_be_undone_is_noted_with_who_did_it(client, sessions, api_key):
    job_id = add_job(sessions)
    client.post(f"/v1/jobs/{job_id}/cancel")
    client.delete(f"/v1/jobs/{job_id}")
    lines = client.get("/v1/audit").json()["lines"]
    assert [(line["action"], line["subject"]) for line in lines] == [("job.delete", str(job_id)), ("job.cancel", str(job_id))]
    assert {line["actor"] for line in lines} == {api_key.split("_")[1]}


def test_keys_are_made_listed_rotated_and_revoked_by_command(stack, sessions, monkeypatch):
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    run = CliRunner()
    token = run.invoke(app, ["keys", "create", "--tenant", "acme", "--name", "shop", "--scope", "read"]).stdout.strip()
    assert authenticate(sessions, token).tenant == "acme"
    assert "shop" in run.invoke(app, ["keys", "list", "--tenant", "acme"], env={"COLUMNS": "200"}).stdout
    successor = run.invoke(app, ["keys", "rotate", token.split("_")[1]]).stdout.strip()
    assert run.invoke(app, ["keys", "revoke", successor.split("_")[1]]).exit_code == 0
    with pytest.raises(Unauthorized):
        authenticate(sessions, successor)
    assert run.invoke(app, ["tenants", "set", "acme", "max_running", "2"]).exit_code == 0
    with sessions() as session:
        assert session.get(Tenant, "acme").max_running == 2
        actions = session.scalars(select(AuditLine.action).where(AuditLine.tenant == "acme").order_by(AuditLine.seq)).all()
    assert actions == ["key.create", "key.rotate", "key.revoke", "tenant.max_running"]
