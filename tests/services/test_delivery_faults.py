"""Receivers that are dead, deliverers that are killed, hosts that turn private: what happens to deliveries then."""

import signal
import threading
import time
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, text

from embedded.service import start_part
from jobs.database import make_sessions
from jobs.tables import Delivery
from jobs.webhooks.deliveries import claim
from jobs.webhooks.egress import HOST_REFUSED, EgressPolicy
from jobs.webhooks.scheduling import MAX_PER_WEBHOOK, DeliveryScheduler, Lane
from tests.receivers import receiving
from tests.services.doomed import SPAWN, before, end_of
from tests.services.telling import QUICK, change, create, deliver, delivering, end, log, row
from worker.reconciler.webhook_delivery import WebhookDeliverer
from worker.reconciler.webhook_sender import WebhookSender

HOUR = timedelta(hours=1)


@pytest.fixture
def settings(settings):
    return settings.model_copy(update=QUICK)


def test_a_host_that_has_become_private_is_not_reached(client, sessions, receiver):
    """The name was public when it was registered."""
    webhook = create(client, receiver)
    end(client)
    for address in ("10.0.0.1", "::ffff:127.0.0.1", "100.64.0.1", "127.0.0.1"):
        rebound = EgressPolicy(allow_http=True, resolve=lambda host, port, address=address: [address])
        sender = WebhookSender(policy=rebound, timeout_s=3)
        rebinding = WebhookDeliverer(sessions, sender, DeliveryScheduler(8), delay_scale=1)
        assert rebinding.start_due() == 1
        rebinding.wait()
        (line,) = log(client, webhook)
        assert (line["state"], line["status"], line["error"]) == ("pending", None, HOST_REFUSED)
        change(sessions, Delivery, next_at=func.now())
    assert receiver.all() == []


def choose(waiting):
    """Choose as a deliverer does that has nothing to do."""
    return DeliveryScheduler(128).choose(waiting, [])


def test_a_dead_receiver_holds_up_nobody(client, deliverer, receiver):
    with delivering(deliverer), receiving() as dead:
        dead.open.clear()
        stuck = create(client, dead)
        create(client, receiver)
        for _ in range(20):
            end(client)
        began = time.monotonic()
        assert len({receiver.get().id for _ in range(20)}) == 20
        assert time.monotonic() - began < deliverer.sender.timeout_s
        assert (dead.most_at_once, receiver.most_at_once <= 2) == (MAX_PER_WEBHOOK[Lane.NEW], True)
        assert {line["state"] for line in log(client, stuck)} == {"pending"}


def test_no_delivery_is_claimed_twice(client, sessions, receiver):
    for _ in range(8):
        create(client, receiver)
    end(client)
    barrier, claimed = threading.Barrier(4), []

    def take():
        barrier.wait()
        with sessions.begin() as session:
            claimed.extend(this.id for this in claim(session, choose, HOUR))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 8


def test_an_outcome_that_comes_too_late_changes_nothing(client, sessions, deliverer, receiver):
    create(client, receiver)
    end(client)
    receiver.open.clear()
    deliverer.start_due()
    receiver.get()
    change(sessions, Delivery, next_at=func.now() + HOUR)  # as a deliverer does that claims it after our lease
    receiver.open.set()
    deliverer.wait()
    assert row(sessions, Delivery).state == "pending"


def test_a_webhook_that_is_deleted_while_it_is_told_is_no_harm(client, sessions, deliverer, receiver):
    webhook = create(client, receiver)
    end(client)
    receiver.open.clear()
    deliverer.start_due()
    receiver.get()
    assert client.delete(f"/v1/webhooks/{webhook['id']}").status_code == 204
    receiver.open.set()
    deliverer.wait()
    assert deliverer.in_flight == {}


def test_jobs_go_on_while_no_webhook_can_be_told(client, sessions, deliverer, receiver):
    create(client, receiver)
    receiver.open.clear()
    end(client)
    deliverer.start_due()
    receiver.get()
    began = time.monotonic()
    end(client)
    assert time.monotonic() - began < 1
    receiver.open.set()
    deliverer.wait()


DEATHS = {
    "before it is sent": lambda: before(WebhookDeliverer, "send"),
    "before it is settled": lambda: before(WebhookDeliverer, "record_outcome"),
}


def doomed(settings, point):
    DEATHS[point]()
    deliverer = WebhookDeliverer.from_settings(make_sessions(settings.database_url), settings)
    deliverer.start_due()
    deliverer.wait()


@pytest.mark.parametrize(("point", "arrived"), [("before it is sent", 0), ("before it is settled", 1)])
def test_what_a_killed_deliverer_had_claimed_is_delivered_by_another(
    client, settings, sessions, deliverer, receiver, point, arrived
):
    webhook = create(client, receiver)
    end(client)
    assert end_of(SPAWN.Process(target=doomed, args=(settings, point))) == -signal.SIGKILL
    assert len(receiver.received.queue) == arrived
    deliver(deliverer)  # not before the lease has run out
    assert len(receiver.received.queue) == arrived
    change(sessions, Delivery, next_at=func.now())
    deliver(deliverer)
    assert {request.id for request in receiver.all()} == {log(client, webhook)[0]["id"]}
    assert (row(sessions, Delivery).state, row(sessions, Delivery).tries) == ("delivered", 2)


def test_many_that_wait_for_one_webhook_do_not_slow_down_the_claims(client, sessions, receiver):
    webhook = create(client, receiver)
    with sessions.begin() as session:
        rows = "SELECT :id, gen_random_uuid(), 'job.failed', '{}' FROM generate_series(1, 50000)"
        session.execute(text(f"INSERT INTO deliveries (webhook, job_id, type, data) {rows}"), {"id": UUID(webhook["id"])})
    with sessions.begin() as session:
        session.execute(text("ANALYZE deliveries"))
    with sessions.begin() as session:
        began = time.monotonic()
        assert len(claim(session, choose, HOUR)) == 2
        assert time.monotonic() - began < 0.1


def test_the_reconciler_delivers_and_ends_when_asked(stack, settings, client, sessions, receiver, cleanup):
    create(client, receiver)
    allowed = {"DRAGQUEUE_WEBHOOK_ALLOW_HTTP": "1", "DRAGQUEUE_WEBHOOK_ALLOWED_NETWORKS": "10.9.0.0/16, 127.0.0.0/8"}
    child = start_part(stack, "reconciler", [], cleanup, environment=stack.environment | allowed)
    end(client)
    receiver.received.get(timeout=30)
    child.process.terminate()
    assert child.process.wait(10) == 0
    assert row(sessions, Delivery).state == "delivered"
