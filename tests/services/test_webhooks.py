"""Webhooks over HTTP: registering, changing, rotating; whose they are."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import ip_network
from uuid import uuid4

import pytest
from sqlalchemy import func, select, update

from jobs.tables import DEFAULT_TENANT, AuditLine, Delivery, Tenant, Webhook
from jobs.tenants.keys import Scope
from jobs.webhooks.deliveries import MAX_MANUAL_AT_ONCE
from tests.services.conftest import api_client, make_key
from tests.services.jobs import DOCUMENT

URL = "http://127.0.0.1:9/hook"
ENDED = ["job.succeeded", "job.failed", "job.canceled", "job.expired"]


@pytest.fixture
def settings(settings):
    """The loopback may be told."""
    return settings.model_copy(update={"webhook_allow_http": True, "webhook_allowed_networks": (ip_network("127.0.0.0/8"),)})


def create(client, **fields):
    answer = client.post("/v1/webhooks", json={"url": URL} | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def problem(answer):
    return answer.status_code, answer.json()["code"], [error["field"] for error in answer.json()["errors"]]


def test_a_webhook_wants_to_be_told_of_every_job_that_ends(client):
    answer = client.post("/v1/webhooks", json={"url": URL})
    webhook = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/v1/webhooks/{webhook['id']}")
    assert webhook["secret"].startswith("whsec_")
    assert (webhook["events"], webhook["every_job"], webhook["disabled_at"], webhook["old_secret"]) == (ENDED, True, None, False)


def test_its_secret_is_shown_once(client):
    webhook = create(client)
    secret = webhook.pop("secret")
    shown = client.get(f"/v1/webhooks/{webhook['id']}")
    assert shown.json() == webhook
    everything = [shown.text, client.get("/v1/webhooks").text, client.patch(f"/v1/webhooks/{webhook['id']}", json={}).text]
    assert not any(secret in text for text in everything)


def test_they_are_listed_by_age(client):
    made = [create(client)["id"] for _ in range(3)]
    assert [webhook["id"] for webhook in client.get("/v1/webhooks").json()["webhooks"]] == made


def test_a_webhook_can_be_changed(client):
    webhook = create(client)
    change = {"url": URL + "/new", "events": ["job.failed", "job.queued", "job.failed"], "every_job": False}
    changed = client.patch(f"/v1/webhooks/{webhook['id']}", json=change).json()
    assert (changed["url"], changed["events"], changed["every_job"]) == (URL + "/new", ["job.failed", "job.queued"], False)
    assert client.patch(f"/v1/webhooks/{webhook['id']}", json={"every_job": True}).json() == changed | {"every_job": True}


def test_one_that_was_disabled_can_be_enabled(client, sessions):
    webhook = create(client)
    with sessions.begin() as session:
        session.execute(update(Webhook).values(disabled_at=Webhook.created_at, failing_since=Webhook.created_at))
    assert client.patch(f"/v1/webhooks/{webhook['id']}", json={"every_job": True}).json()["disabled_at"] is not None
    assert client.post(f"/v1/webhooks/{webhook['id']}/test").json()["code"] == "webhook_disabled"
    enabled = client.patch(f"/v1/webhooks/{webhook['id']}", json={"enabled": True}).json()
    assert (enabled["disabled_at"], enabled["failing_since"]) == (None, None)
    assert client.post(f"/v1/webhooks/{webhook['id']}/test").status_code == 202


def test_a_rotated_secret_signs_on_until_the_next_rotation_or_until_it_is_dropped(client, sessions):
    webhook = create(client)
    here = f"/v1/webhooks/{webhook['id']}"

    def secrets():
        with sessions() as session:
            return session.scalar(select(Webhook.secrets))

    second = client.post(f"{here}/rotate").json()
    assert second["old_secret"] is True
    assert secrets() == [second["secret"], webhook["secret"]]
    third = client.post(f"{here}/rotate").json()
    assert secrets() == [third["secret"], second["secret"]]
    assert [client.delete(f"{here}/secrets/old").status_code for _ in range(2)] == [204, 204]
    assert secrets() == [third["secret"]]
    assert client.get(here).json()["old_secret"] is False


def test_a_deleted_webhook_is_gone_with_its_deliveries(client):
    webhook = create(client)
    assert client.post(f"/v1/webhooks/{webhook['id']}/test").status_code == 202
    assert client.delete(f"/v1/webhooks/{webhook['id']}").status_code == 204
    assert client.get(f"/v1/webhooks/{webhook['id']}").json()["code"] == "webhook_not_found"
    assert client.get("/v1/webhooks").json() == {"webhooks": []}


def test_the_audit_tells_of_secrets_made_and_webhooks_gone(client, sessions, api_key):
    webhook = create(client)
    client.post(f"/v1/webhooks/{webhook['id']}/rotate")
    client.delete(f"/v1/webhooks/{webhook['id']}")
    with sessions() as session:
        lines = session.execute(select(AuditLine.action, AuditLine.subject, AuditLine.actor).order_by(AuditLine.seq)).all()
    actions = [f"webhook.{action}" for action in ("create", "rotate", "delete")]
    assert lines == [(action, webhook["id"], api_key.split("_")[1]) for action in actions]


def test_a_tenant_has_at_most_sixteen(client):
    made = [create(client) for _ in range(16)]
    refused = client.post("/v1/webhooks", json={"url": URL})
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    assert "may have 16 webhooks" in refused.json()["detail"]
    client.delete(f"/v1/webhooks/{made[0]['id']}")
    create(client)


def test_also_of_those_that_are_added_at_the_same_time(client):
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/webhooks", json={"url": URL}).status_code, range(40)))
    assert sorted(answers) == [201] * 16 + [429] * 24


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://localhost:8443/", "https://10.0.0.1/", "https://169.254.169.254/latest/meta-data/",
        "https://100.64.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://0x7f.1/", "http://8.8.8.8/",
        "ftp://8.8.8.8/", "https://user:word@8.8.8.8/", "https://no-such-host.invalid/", "gopher", "https://8.8.8.8/\u0000",
    ],
)  # fmt: skip
def test_without_the_operators_leave_only_public_https_addresses_are_told(settings, queue, api_key, url):
    strict = settings.model_copy(update={"webhook_allow_http": False, "webhook_allowed_networks": ()})
    with api_client(strict, api_key) as client:
        assert problem(client.post("/v1/webhooks", json={"url": url})) == (422, "invalid_webhook", ["url"])
        webhook = create(client, url="https://8.8.8.8/")
        assert problem(client.patch(f"/v1/webhooks/{webhook['id']}", json={"url": url})) == (422, "invalid_webhook", ["url"])
        assert client.get(f"/v1/webhooks/{webhook['id']}").json()["url"] == "https://8.8.8.8/"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"events": []}, "events"), ({"events": ["job.done"]}, "events[0]"), ({"events": ["webhook.test"]}, "events[0]"),
        ({"every_job": "perhaps"}, "every_job"), ({"url": ""}, "url"), ({"url": "https://8.8.8.8/" + "x" * 2048}, "url"),
        ({"secret": "whsec_mine"}, "secret"), ({"url": None}, "url"),
    ],
)  # fmt: skip
def test_what_is_no_webhook_is_refused(client, fields, field):
    status, _, fields_at_fault = problem(client.post("/v1/webhooks", json={"url": URL} | fields))
    assert (status, fields_at_fault) == (422, [field])


def test_a_refusal_tells_nothing_about_the_network_inside(settings, queue, api_key):
    strict = settings.model_copy(update={"webhook_allowed_networks": ()})
    urls = [
        "https://localhost/",
        "https://no-such-host.invalid/",
        "https://10.0.0.1/",
        "https://168.63.129.16/",
        "https://[::1]/",
    ]
    with api_client(strict, api_key) as client:
        answers = [client.post("/v1/webhooks", json={"url": url}) for url in urls]
    assert len({answer.text for answer in answers}) == 1
    assert problem(answers[0]) == (422, "invalid_webhook", ["url"])


def limited(answer):
    return answer.status_code, answer.json()["code"], int(answer.headers["retry-after"]) > 0


def test_tests_are_limited_for_a_tenant_as_a_whole(client, stranger, sessions):
    """Over several webhooks, and in requests at the same time."""
    hooks = [create(client)["id"] for _ in range(8)]
    set_manual(sessions, ahead_s=MAX_MANUAL_AT_ONCE - 10)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: client.post(f"/v1/webhooks/{hooks[number % 8]}/test"), range(40)))
    accepted = [answer.status_code for answer in answers].count(202)
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Delivery)) == accepted
    assert 10 <= accepted < 30  # one more for each second that passes
    assert {limited(answer) for answer in answers if answer.status_code != 202} == {(429, "rate_limited", True)}
    assert stranger.post(f"/v1/webhooks/{create(stranger)['id']}/test").status_code == 202


def test_redeliveries_count_as_tests_do_and_a_new_webhook_is_no_way_out(client, sessions):
    here = f"/v1/webhooks/{create(client)['id']}"
    delivery = client.post(f"{here}/test").json()["id"]
    again = f"{here}/deliveries/{delivery}/redeliver"
    assert client.post(again).status_code == 202
    set_manual(sessions, ahead_s=MAX_MANUAL_AT_ONCE + 60)
    assert limited(client.post(again)) == (429, "rate_limited", True)
    client.delete(here)
    assert limited(client.post(f"/v1/webhooks/{create(client)['id']}/test")) == (429, "rate_limited", True)
    set_manual(sessions, ahead_s=-3600)
    assert client.post(f"/v1/webhooks/{create(client)['id']}/test").status_code == 202


def set_manual(sessions, ahead_s):
    """Use up some of what the default tenant may send by hand."""
    with sessions.begin() as session:
        until = func.clock_timestamp() + timedelta(seconds=ahead_s)
        session.execute(update(Tenant).where(Tenant.id == DEFAULT_TENANT).values(manual_until=until))


@pytest.fixture
def stranger(settings, sessions, client):
    """Another tenant."""
    with api_client(settings, make_key(sessions, "stranger")) as stranger:
        yield stranger


def test_nobody_reaches_another_tenants_webhooks(client, stranger):
    here, own = f"/v1/webhooks/{create(client)['id']}", f"/v1/webhooks/{create(stranger)['id']}"
    delivery = client.post(f"{here}/test").json()["id"]
    asked = [
        stranger.get(here), stranger.patch(here, json={"every_job": False}), stranger.delete(here),
        stranger.post(f"{here}/rotate"), stranger.delete(f"{here}/secrets/old"), stranger.post(f"{here}/test"),
        stranger.get(f"{here}/deliveries"), stranger.post(f"{here}/deliveries/{delivery}/redeliver"),
        stranger.post(f"{own}/deliveries/{delivery}/redeliver"),
    ]  # fmt: skip
    assert [(answer.status_code, answer.json()["code"]) for answer in asked] == [(404, "webhook_not_found")] * len(asked)
    assert len(stranger.get("/v1/webhooks").json()["webhooks"]) == 1
    assert stranger.get(f"{own}/deliveries", params={"cursor": delivery}).json()["deliveries"] == []
    assert client.get(here).json()["every_job"] is True


@pytest.mark.parametrize("scope", [Scope.READ, Scope.SUBMIT])
def test_webhooks_are_for_keys_with_the_scope_admin(settings, sessions, client, scope):
    here = f"/v1/webhooks/{create(client)['id']}"
    with api_client(settings, make_key(sessions, scopes=(scope,))) as lesser:
        asked = [
            lesser.get("/v1/webhooks"), lesser.post("/v1/webhooks", json={"url": URL}), lesser.get(here), lesser.delete(here),
            lesser.patch(here, json={}), lesser.post(f"{here}/rotate"), lesser.delete(f"{here}/secrets/old"),
            lesser.post(f"{here}/test"), lesser.get(f"{here}/deliveries"), lesser.post(f"{here}/deliveries/{uuid4()}/redeliver"),
        ]  # fmt: skip
    assert {answer.status_code for answer in asked} == {403}


def test_a_job_may_name_the_tenants_own_webhooks(client, stranger):
    own, others = create(client)["id"], create(stranger)["id"]
    accepted = client.post("/v1/jobs", json=DOCUMENT | {"webhooks": [own]})
    assert (accepted.status_code, accepted.json()["spec"]["webhooks"]) == (202, [own])
    refused = client.post("/v1/jobs", json=DOCUMENT | {"webhooks": [own, others, str(uuid4())]})
    assert problem(refused) == (422, "invalid_job", ["webhooks[1]", "webhooks[2]"])
    many = client.post("/v1/jobs", json=DOCUMENT | {"webhooks": [own] * 9})
    assert problem(many) == (422, "invalid_job", ["webhooks"])


def test_a_job_whose_webhook_was_deleted_can_be_done_again(client):
    gone, kept = create(client)["id"], create(client)["id"]
    job_id = client.post("/v1/jobs", json=DOCUMENT | {"webhooks": [gone, kept]}).json()["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    client.delete(f"/v1/webhooks/{gone}")
    again = client.post(f"/v1/jobs/{job_id}/retry")
    assert (again.status_code, again.json()["spec"]["webhooks"]) == (202, [kept])
