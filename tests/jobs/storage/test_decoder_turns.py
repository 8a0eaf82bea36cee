from collections import Counter
from contextlib import ExitStack, suppress
from threading import Event, Thread

import pytest

from jobs.cancellation import Canceled, cancelable
from jobs.errors import DecoderBusy
from jobs.storage.decoder_turns import MAX_WAITING, DecoderTurns


def taken_at_once(turns, tenant):
    """How many children a tenant gets while nobody else waits."""
    taken = 0
    with ExitStack() as held, suppress(DecoderBusy):
        while True:
            held.enter_context(turns.turn(tenant, wait_s=0.001))
            taken += 1
    return taken


@pytest.mark.parametrize(("capacity", "share"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6), (16, 12)])
def test_a_tenant_never_holds_all_children_where_there_are_two(capacity, share):
    turns = DecoderTurns(capacity)
    assert taken_at_once(turns, "greedy") == share
    turns.resize(4 * capacity)
    assert taken_at_once(turns, "greedy") > share


def test_a_tenant_that_holds_its_share_keeps_no_other_out():
    turns = DecoderTurns(2)
    with turns.turn("greedy", wait_s=0.001), turns.turn("other", wait_s=0.001):
        assert turns.held == Counter(greedy=1, other=1)
    assert not turns.held
    assert not turns.waiting


class Waiter(Thread):
    """A file that waits for its turn, and notes when it has it."""

    def __init__(self, turns, tenant, order):
        super().__init__()
        self.turns, self.tenant, self.order = turns, tenant, order
        before = len(turns.waiting)
        self.start()
        while len(turns.waiting) == before and self.is_alive():
            pass

    def run(self):
        with self.turns.turn(self.tenant, wait_s=30):
            self.order.append(self.tenant)


def test_those_who_wait_are_served_in_turns_of_tenants():
    turns, order = DecoderTurns(1), []
    with turns.turn("greedy", wait_s=1):
        waiters = [Waiter(turns, tenant, order) for tenant in ("greedy", "greedy", "greedy", "late")]
    for waiter in waiters:
        waiter.join()
    assert order == ["late", "greedy", "greedy", "greedy"]


def test_the_queue_of_a_tenant_is_bounded_and_no_other_tenants():
    turns, order = DecoderTurns(1), []
    with turns.turn("greedy", wait_s=1):
        waiters = [Waiter(turns, "greedy", order) for _ in range(MAX_WAITING)]
        with pytest.raises(DecoderBusy, match="8 of your files wait"):
            turns.take("greedy", wait_s=30)
        with pytest.raises(DecoderBusy, match="no turn within"):
            turns.take("other", wait_s=0.001)
    for waiter in waiters:
        waiter.join()


def test_who_has_gone_waits_no_longer():
    turns, gone = DecoderTurns(1), Event()
    gone.set()
    with turns.turn("greedy", wait_s=1), cancelable(gone), pytest.raises(Canceled):
        turns.take("greedy", wait_s=30)
    assert not turns.waiting
