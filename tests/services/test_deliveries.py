"""Events that reach webhooks: signed, filtered, repeated, logged."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from standardwebhooks import Webhook as Verifier

from jobs.tables import Delivery, Job, Webhook
from jobs.webhooks import deliveries
from jobs.webhooks.deliveries import RETRY_DELAYS_S
from tests.receivers import Answer, receiving
from tests.services.telling import QUICK, change, create, deliver, end, log, row, submit

HOUR = timedelta(hours=1)


@pytest.fixture
def settings(settings):
    return settings.model_copy(update=QUICK)


def test_a_job_that_ends_is_told_of(client, deliverer, receiver):
    webhook = create(client, receiver)
    job_id = end(client, metadata={"order": 17})
    deliver(deliverer)
    request = receiver.get()
    told = Verifier(webhook["secret"]).verify(request.body, request.headers)
    assert told.keys() == {"type", "timestamp", "data"}
    assert told["type"] == "job.canceled"
    assert told["data"] == {"job": job_id, "state": "canceled", "attempt": 0, "model": "tiny", "metadata": {"order": 17}}
    assert abs(datetime.now(UTC) - datetime.fromisoformat(told["timestamp"])) < timedelta(minutes=1)
    assert request.headers["content-type"] == "application/json"
    (line,) = log(client, webhook)
    assert (line["id"], line["job"], line["type"]) == (request.id, job_id, "job.canceled")
    assert (line["state"], line["tries"], line["status"], line["error"], line["next_at"]) == ("delivered", 1, 204, None, None)
    assert line["created_at"] < line["ended_at"]


def test_each_webhook_hears_what_it_asked_for(client, deliverer, receiver, sessions):
    create(client, receiver, url=receiver.url + "/ends")
    create(client, receiver, url=receiver.url + "/begins", events=["job.queued", "job.cancel_requested"])
    submit(client)
    change(sessions, Job, state="succeeded")
    deliver(deliverer)
    heard = sorted((request.path, json.loads(request.body)["type"]) for request in receiver.all())
    assert heard == [("/hook/begins", "job.queued"), ("/hook/ends", "job.succeeded")]


def test_a_webhook_may_want_to_hear_only_of_jobs_that_name_it(client, deliverer, receiver):
    webhook = create(client, receiver, every_job=False)
    end(client)
    named = end(client, webhooks=[webhook["id"]])
    deliver(deliverer)
    (request,) = receiver.all()
    assert Verifier(webhook["secret"]).verify(request.body, request.headers)["data"]["job"] == named


def test_a_job_that_names_a_webhook_for_every_job_is_told_of_once(client, deliverer, receiver):
    webhook = create(client, receiver)
    end(client, webhooks=[webhook["id"]])
    deliver(deliverer)
    assert len(receiver.all()) == 1


def test_both_secrets_sign_while_they_are_rotated(client, deliverer, receiver):
    webhook = create(client, receiver)
    here = f"/v1/webhooks/{webhook['id']}"
    rotated = client.post(f"{here}/rotate").json()
    end(client)
    deliver(deliverer)
    request = receiver.get()
    for secret in (webhook["secret"], rotated["secret"]):
        Verifier(secret).verify(request.body, request.headers)
    client.delete(f"{here}/secrets/old")
    end(client)
    deliver(deliverer)
    assert " " not in receiver.get().headers["webhook-signature"]


def test_what_fails_is_tried_again_with_the_same_id(client, deliverer, receiver):
    webhook = create(client, receiver)
    receiver.next = [Answer(500), Answer(404), Answer(302, {"Location": receiver.url})]
    end(client)
    deliver(deliverer)
    requests = receiver.all()
    assert len(requests) == 4
    assert len({(request.id, request.body) for request in requests}) == 1
    (line,) = log(client, webhook)
    assert (line["state"], line["tries"], line["status"]) == ("delivered", 4, 204)
    assert client.get(f"/v1/webhooks/{webhook['id']}").json()["failing_since"] is None


def test_after_the_last_try_a_delivery_has_failed(client, deliverer, receiver):
    webhook = create(client, receiver)
    receiver.answer = Answer(500)
    end(client)
    deliver(deliverer)
    assert len(receiver.all()) == len(RETRY_DELAYS_S) == 10
    (line,) = log(client, webhook, state="failed")
    assert (line["tries"], line["status"], line["error"], line["next_at"]) == (10, 500, "HTTP 500", None)
    shown = client.get(f"/v1/webhooks/{webhook['id']}").json()
    assert (shown["failing_since"] is not None, shown["disabled_at"]) == (True, None)


def test_a_delivery_that_failed_rests(client, sessions, deliverer, receiver):
    create(client, receiver)
    receiver.answer = Answer(500)
    end(client)
    change(sessions, Delivery, tries=4)
    deliverer.delay_scale = 1.0
    began = datetime.now(UTC)
    deliver(deliverer)
    assert len(receiver.all()) == 1
    assert 0.8 * RETRY_DELAYS_S[5] <= (row(sessions, Delivery).next_at - began).total_seconds() <= 1.2 * RETRY_DELAYS_S[5] + 5


@pytest.mark.parametrize("status", [429, 503])
def test_a_receiver_that_asks_for_a_rest_gets_it(client, sessions, deliverer, receiver, status):
    create(client, receiver)
    receiver.answer = Answer(status, {"Retry-After": "3600"})
    end(client)
    deliver(deliverer)
    assert len(receiver.all()) == 1
    waits = row(sessions, Delivery).next_at - datetime.now(UTC)
    assert timedelta(minutes=59) < waits <= HOUR


def test_a_receiver_that_is_gone_is_told_nothing_more(client, sessions, deliverer, receiver):
    webhook = create(client, receiver)
    receiver.answer = Answer(410)
    for _ in range(2):
        end(client)
    change(sessions, Delivery, next_at=func.now() + HOUR)
    with sessions.begin() as session:
        first = session.scalars(select(Delivery)).first()
        first.next_at = func.now()
    deliver(deliverer)
    end(client)
    assert len(receiver.all()) == 1
    assert client.get(f"/v1/webhooks/{webhook['id']}").json()["disabled_at"] is not None
    outcomes = {(line["state"], line["tries"], line["error"]) for line in log(client, webhook)}
    assert outcomes == {("failed", 1, "HTTP 410"), ("failed", 0, "the webhook was disabled")}


@pytest.mark.parametrize(("days", "disabled"), [(4.9, False), (5.1, True)])
def test_a_webhook_that_fails_for_five_days_is_disabled(client, sessions, deliverer, receiver, days, disabled):
    webhook = create(client, receiver)
    receiver.answer = Answer(500)
    change(sessions, Webhook, failing_since=func.now() - timedelta(days=days))
    end(client)
    deliverer.start_due()
    deliverer.wait()
    assert (client.get(f"/v1/webhooks/{webhook['id']}").json()["disabled_at"] is not None) == disabled
    assert log(client, webhook)[0]["state"] == ("failed" if disabled else "pending")


def test_a_delivery_that_arrives_ends_a_webhooks_failing(client, sessions, deliverer, receiver):
    create(client, receiver)
    change(sessions, Webhook, failing_since=func.now() - timedelta(days=9))
    end(client)
    deliver(deliverer)
    assert (row(sessions, Webhook).failing_since, row(sessions, Webhook).disabled_at) == (None, None)


def test_what_was_still_told_to_a_disabled_webhook_is_not_sent(client, sessions, deliverer, receiver):
    """As an event may be that is written while the webhook is being disabled."""
    create(client, receiver)
    end(client)
    change(sessions, Webhook, disabled_at=func.now())
    deliver(deliverer)
    assert receiver.all() == []
    assert row(sessions, Delivery).state == "failed"


def test_a_delivery_can_be_sent_again(client, deliverer, receiver):
    webhook = create(client, receiver)
    end(client)
    deliver(deliverer)
    (line,) = log(client, webhook)
    again = client.post(f"/v1/webhooks/{webhook['id']}/deliveries/{line['id']}/redeliver")
    assert (again.status_code, again.json()["state"], again.json()["tries"], again.json()["ended_at"]) == (
        202,
        "pending",
        0,
        None,
    )
    deliver(deliverer)
    assert [request.id for request in receiver.all()] == [line["id"]] * 2
    assert log(client, webhook)[0]["state"] == "delivered"


def test_a_delivery_that_rests_can_be_sent_now(client, sessions, deliverer, receiver):
    webhook = create(client, receiver)
    end(client)
    change(sessions, Delivery, next_at=func.now() + HOUR, tries=5)
    deliver(deliverer)
    assert receiver.all() == []
    client.post(f"/v1/webhooks/{webhook['id']}/deliveries/{log(client, webhook)[0]['id']}/redeliver")
    deliver(deliverer)
    assert len(receiver.all()) == 1


def test_a_test_is_sent_like_any_event(client, deliverer, receiver):
    webhook = create(client, receiver, events=["job.failed"], every_job=False)
    queued = client.post(f"/v1/webhooks/{webhook['id']}/test").json()
    assert (queued["type"], queued["job"], queued["state"]) == ("webhook.test", None, "pending")
    deliver(deliverer)
    request = receiver.get()
    told = Verifier(webhook["secret"]).verify(request.body, request.headers)
    assert (request.id, told["type"], told["data"]) == (queued["id"], "webhook.test", {"webhook": webhook["id"]})


def test_the_log_has_pages(client, deliverer, receiver):
    webhook = create(client, receiver)
    made = [client.post(f"/v1/webhooks/{webhook['id']}/test").json()["id"] for _ in range(5)]
    here, seen, cursor = f"/v1/webhooks/{webhook['id']}/deliveries", [], None
    while True:
        page = client.get(here, params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [line["id"] for line in page["deliveries"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]
    assert log(client, webhook, state="delivered") == []


def test_what_waits_goes_to_the_new_url(client, deliverer, receiver):
    with receiving() as newer:
        webhook = create(client, receiver)
        end(client)
        client.patch(f"/v1/webhooks/{webhook['id']}", json={"url": newer.url})
        deliver(deliverer)
        assert (len(receiver.all()), len(newer.all())) == (0, 1)


def test_the_log_is_kept_for_a_month(client, sessions, deliverer, receiver):
    webhook = create(client, receiver)
    for _ in range(2):
        end(client)
    deliver(deliverer)
    end(client)
    with sessions.begin() as session:
        oldest = session.scalars(select(Delivery).order_by(Delivery.created_at)).first()
        oldest.ended_at = func.now() - timedelta(days=31)
        session.flush()
        assert deliveries.delete_old(session) == 1
    assert [line["state"] for line in log(client, webhook)] == ["pending", "delivered"]
