"""Receivers that hold their answers: whoever else is told something is told at once, while all of them still hold on."""

import threading
from collections import Counter

import pytest
from sqlalchemy import select

from jobs.tables import Webhook
from jobs.webhooks import deliveries
from jobs.webhooks.scheduling import SLOW_S, DeliveryScheduler
from tests.receivers import receiving
from tests.services.telling import QUICK, add_events, add_webhooks, change, delivering
from tests.services.watching import wait_until
from worker.reconciler.webhook_delivery import WebhookDeliverer


@pytest.fixture
def settings(settings):
    return settings.model_copy(update=QUICK | {"webhook_timeout_s": 30.0})


@pytest.fixture
def held():
    """Receivers that hold every answer until the test ends."""
    with receiving() as held:
        held.open.clear()
        yield held
        held.open.set()


@pytest.mark.parametrize("answer_s", [None, 0.1, 14.0])
def test_sixteen_slow_receivers_of_one_tenant_delay_no_other(sessions, deliverer, receiver, held, answer_s):
    slow = add_webhooks(sessions, "attacker", 16, held.url, answer_s=answer_s)
    with delivering(deliverer):
        add_events(sessions, slow, number=12)
        wait_until(lambda: held.at_once >= 8, "attack")
        for new in range(3):
            add_events(sessions, add_webhooks(sessions, f"victim-{new}", 1, receiver.url))
            receiver.get()
        assert held.at_once == held.most_at_once >= 8  # not one of them has been answered
        held.open.set()


def test_slow_receivers_of_forty_tenants_delay_no_other(sessions, deliverer, receiver, held):
    slow = [each for number in range(40) for each in add_webhooks(sessions, f"attacker-{number}", 4, held.url)]
    victims = [add_webhooks(sessions, f"victim-{number}", 1, receiver.url, answer_s=0.1) for number in range(5)]
    with delivering(deliverer):
        add_events(sessions, slow, number=3)
        wait_until(lambda: held.at_once >= 8, "attack")
        for victim in victims:  # a trickle
            add_events(sessions, victim)
            receiver.get()
        assert held.most_at_once == held.at_once
        held.open.set()


def test_an_attempt_that_lasts_frees_its_place_for_new_webhooks(sessions, settings, receiver, held):
    """Two places are for webhooks that nobody knows; both are taken until their attempts turn out to be slow."""
    deliverer = WebhookDeliverer.from_settings(sessions, settings.model_copy(update={"webhook_concurrency": 8}))
    strangers = [add_webhooks(sessions, f"stranger-{number}", 1, held.url) for number in range(2)]
    with delivering(deliverer):
        for stranger in strangers:
            add_events(sessions, stranger)
        wait_until(lambda: held.at_once == 2, "attack")
        add_events(sessions, add_webhooks(sessions, "victim", 1, receiver.url))
        receiver.get()
        assert held.at_once == 2
        held.open.set()


def test_how_long_a_receiver_took_is_remembered_by_all_reconcilers(sessions, settings, deliverer, held, receiver):
    slow, quick = add_webhooks(sessions, "a", 1, held.url) + add_webhooks(sessions, "b", 1, receiver.url)
    add_events(sessions, [slow, quick])
    deliverer.start_due()
    held.get()
    threading.Timer(1.2 * SLOW_S, held.open.set).start()
    deliverer.wait()
    with sessions() as session:
        answers = dict(session.execute(select(Webhook.id, Webhook.answer_s)).all())
    assert answers[slow] > SLOW_S > answers[quick]
    add_events(sessions, [slow, quick], number=2)
    another = WebhookDeliverer.from_settings(sessions, settings)
    assert another.start_due() == 1 + 2
    another.wait()


def test_two_reconcilers_share_what_is_due(sessions, settings):
    for number in range(4):
        add_events(sessions, add_webhooks(sessions, f"tenant-{number}", 4, "http://127.0.0.1:9/", answer_s=0.1), number=2)
    barrier, claimed = threading.Barrier(2), []

    def claim():
        scheduler = DeliveryScheduler(settings.webhook_concurrency)
        barrier.wait()
        with sessions.begin() as session:
            claimed.extend(deliveries.claim(session, lambda waiting: scheduler.choose(waiting, []), deliveries.LOG_RETENTION))

    threads = [threading.Thread(target=claim) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(attempt.webhook for attempt in claimed).most_common(1)[0][1] == 2
    assert len({attempt.id for attempt in claimed}) == len(claimed) == 32


def test_quick_deliveries_write_nothing_of_their_webhook(sessions, deliverer, receiver):
    webhooks = add_webhooks(sessions, "a", 1, receiver.url)

    def version():
        with sessions() as session:
            return session.execute(select(Webhook.answer_s)).scalar_one()

    add_events(sessions, webhooks)
    deliverer.start_due()
    deliverer.wait()
    first = version()
    change(sessions, Webhook, answer_s=0.5)
    add_events(sessions, webhooks)
    deliverer.start_due()
    deliverer.wait()
    assert (first < SLOW_S, version()) == (True, 0.5)
