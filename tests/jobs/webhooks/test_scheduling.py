from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from jobs.webhooks.scheduling import DeliveryScheduler, Lane, Place, WaitingWebhook, smooth_answer_s

NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUICK, SLOW, NEW = 0.1, 14.0, None


def webhook(tenant, answer_s=QUICK, *, due=2, waits_s=0.0, failing=False):
    since = NOW - timedelta(seconds=waits_s)
    return WaitingWebhook(id=uuid4(), tenant=tenant, due=due, since=since, answer_s=answer_s, failing=failing)


def webhooks(number, tenant, answer_s=QUICK, **values):
    return [webhook(tenant, answer_s, **values) for _ in range(number)]


def per_tenant(places):
    return Counter(place.tenant for place in places)


def lasting(places):
    """The same attempts a while later."""
    return [replace(place, lasts=True) for place in places]


def settle(scheduler, waiting):
    """Return the places that are taken when everybody who answers slowly holds on to what he gets."""
    taken = []
    while chosen := scheduler.choose(waiting, taken):
        taken = lasting(taken + chosen)
    return taken


@pytest.mark.parametrize("answer_s", [QUICK, SLOW, NEW])
def test_one_tenant_leaves_at_least_as_much_as_it_takes(answer_s):
    taken = settle(DeliveryScheduler(16), webhooks(16, "a", answer_s))
    assert 0 < len(taken) <= 8


@pytest.mark.parametrize("answer_s", [QUICK, SLOW, NEW])
@pytest.mark.parametrize("attackers", [1, 3, 10, 40])
def test_beside_tenants_that_hold_all_they_get_another_one_begins_at_once(attackers, answer_s):
    scheduler = DeliveryScheduler(128)
    attack = [each for number in range(attackers) for each in webhooks(16, f"attacker-{number}", answer_s, waits_s=3600)]
    taken = settle(scheduler, attack)
    for theirs in (QUICK, NEW):
        victim = webhook("victim", theirs, due=1)
        assert "victim" in per_tenant(scheduler.choose([*attack, victim], taken))


@pytest.mark.parametrize("attackers", [200, 1000])
def test_however_many_tenants_are_slow_they_hold_half_of_the_places(attackers):
    scheduler = DeliveryScheduler(128)
    attack = [each for number in range(attackers) for each in webhooks(2, f"attacker-{number}", SLOW, waits_s=3600)]
    taken = settle(scheduler, attack)
    assert len(taken) == 64
    for theirs in (QUICK, NEW):
        assert [place.tenant for place in scheduler.choose([*attack, webhook("victim", theirs, due=1)], taken)] == ["victim"]


def test_however_many_tenants_come_with_new_webhooks_a_quarter_of_the_places_is_left_to_those_that_are_known():
    scheduler = DeliveryScheduler(128)
    attack = [each for number in range(300) for each in webhooks(2, f"attacker-{number}", NEW, waits_s=3600)]
    taken = settle(scheduler, attack)
    assert len(taken) == 96
    assert [place.tenant for place in scheduler.choose([*attack, webhook("victim", due=1)], taken)] == ["victim"]
    one_ended = taken[1:]
    assert [place.tenant for place in scheduler.choose([*attack, webhook("new", NEW, due=1)], one_ended)] == ["new"]


def test_before_anybody_had_a_turn_the_tenant_with_the_least_to_send_is_first():
    waiting = [*webhooks(16, "a"), webhook("b", due=1), *webhooks(2, "c")]
    assert [place.tenant for place in DeliveryScheduler(128).choose(waiting, [])[:3]] == ["b", "c", "a"]


def test_a_new_webhook_beside_slow_ones_of_its_tenant_is_no_better_than_they_are():
    chosen = DeliveryScheduler(128).choose([webhook("a", SLOW), webhook("a", NEW), webhook("b", NEW)], [])
    assert {(place.tenant, place.lane) for place in chosen} == {("a", Lane.SLOW), ("b", Lane.NEW)}


def test_a_tenant_that_makes_new_webhooks_beside_its_slow_ones_gains_no_place_by_it():
    scheduler = DeliveryScheduler(128)
    taken = settle(scheduler, webhooks(16, "a", SLOW))
    for _ in range(100):
        taken = lasting(taken + scheduler.choose(webhooks(16, "a", NEW), taken))
    assert len(taken) <= 32


def test_tenants_get_the_same_share_however_many_webhooks_and_events_they_have():
    scheduler = DeliveryScheduler(12)
    chosen = scheduler.choose([*webhooks(16, "many", waits_s=3600), webhook("few"), webhook("one", due=1)], [])
    assert [place.tenant for place in chosen[:3]] == ["one", "few", "many"]
    assert per_tenant(chosen)["few"] == 2
    assert per_tenant(chosen)["one"] == 1


def test_an_old_backlog_gains_no_turn():
    """The tenants outnumber the places: each is served before any is served again."""
    scheduler, served = DeliveryScheduler(8), []
    waiting = [webhook(f"tenant-{number:02}", SLOW, waits_s=3600 - number) for number in range(20)]
    for _ in range(5):
        served += [place.tenant for place in scheduler.choose(waiting, [])]
    assert sorted(served) == sorted({each.tenant for each in waiting})


def test_the_webhooks_of_a_tenant_take_turns():
    scheduler, served = DeliveryScheduler(8), []
    waiting = webhooks(6, "a", SLOW)
    for _ in range(3):
        served += [place.webhook for place in scheduler.choose(waiting, [])]
    assert sorted(served) == sorted(each.id for each in waiting)


def test_a_webhook_has_two_attempts_and_a_slow_or_failing_one_has_one():
    def attempts(waiting, taken=()):
        return len(DeliveryScheduler(128).choose([waiting], taken))

    assert [attempts(webhook("a", answer_s)) for answer_s in (QUICK, NEW, SLOW)] == [2, 2, 1]
    assert attempts(webhook("a", failing=True)) == 1
    held = webhook("a")
    assert attempts(held, [Place(webhook=held.id, tenant="a", lane=Lane.QUICK, lasts=True)]) == 0


def test_no_more_attempts_begin_than_there_are_places():
    waiting = [each for number in range(300) for each in webhooks(2, f"tenant-{number}")]
    scheduler = DeliveryScheduler(128)
    chosen = scheduler.choose(waiting, [])
    assert (len(chosen), len(per_tenant(chosen))) == (128, 128)
    assert scheduler.choose(waiting, chosen) == []


def test_whoever_waits_no_more_is_forgotten():
    scheduler = DeliveryScheduler(8)
    scheduler.choose(webhooks(3, "a"), [])
    one = webhook("b", due=1)
    scheduler.choose([one], [])
    assert scheduler.last_turn.keys() == {"b", one.id}


def test_a_slow_answer_counts_until_several_quick_ones_have_followed():
    answer_s, quick_ones = smooth_answer_s(0.1, 15.0), 0
    while answer_s > 1.0:
        answer_s, quick_ones = smooth_answer_s(answer_s, 0.1), quick_ones + 1
    assert quick_ones == 4
    assert smooth_answer_s(None, 2.0) == 2.0


def test_a_webhook_of_one_tenant_is_never_chosen_for_another():
    waiting = [*webhooks(3, "a"), *webhooks(3, "b", SLOW), *webhooks(3, "c", NEW)]
    owners: dict[UUID, str] = {each.id: each.tenant for each in waiting}
    assert all(owners[place.webhook] == place.tenant for place in DeliveryScheduler(64).choose(waiting, []))
