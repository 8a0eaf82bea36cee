"""What one client may have running at once, without a server."""

import asyncio
import threading
import time

import pytest
from anyio import move_on_after

from api import bodies, concurrency
from api.bodies import ByteBudget
from api.concurrency import UNKNOWN_TURNS, OpenCount, RouteThreads
from api.readiness import ServerCheck
from jobs.cancellation import check_canceled
from jobs.errors import Busy, RateLimited, StorageUnavailable

LIMIT_S = 20


def test_a_tenant_whose_requests_all_wait_holds_up_no_other():
    release = threading.Event()

    async def run():
        threads = RouteThreads(threads=4, share=2)
        waiting = [asyncio.create_task(threads.run("greedy", release.wait, LIMIT_S)) for _ in range(20)]
        await asyncio.sleep(0)
        answers = [await threads.run("modest", str, number) for number in range(5)]
        release.set()
        return answers, await asyncio.gather(*waiting), [share.unused for share in threads.shares.values()]

    assert asyncio.run(run()) == (["0", "1", "2", "3", "4"], [True] * 20, [True, True])


def test_a_request_waits_for_its_tenants_others_for_a_limited_time(monkeypatch):
    monkeypatch.setattr(concurrency, "WAIT_S", 0.05)
    release = threading.Event()

    async def run():
        threads = RouteThreads(threads=2, share=1)
        first = asyncio.create_task(threads.run("greedy", release.wait, LIMIT_S))
        await asyncio.sleep(0.01)
        with pytest.raises(Busy, match="no turn within"):
            await threads.run("greedy", str, 1)
        release.set()
        return await first

    assert asyncio.run(run())


def test_work_in_a_thread_ends_when_its_client_leaves():
    steps = []

    def work():
        while True:
            steps.append(1)
            check_canceled()
            time.sleep(0.001)

    async def leave():
        threads = RouteThreads(threads=1, share=1)
        task = asyncio.create_task(threads.run("a", work))
        while not steps:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        done = len(steps)
        return await threads.run("b", str, 1), len(steps) - done

    assert asyncio.run(leave()) == ("1", 0)


def test_what_does_not_look_whether_its_client_is_there_is_waited_for():
    ended = []

    def work():
        time.sleep(0.05)
        ended.append(1)

    async def leave():
        threads = RouteThreads(threads=1, share=1)
        task = asyncio.create_task(threads.run("a", work))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ended, threads.shares["a"].unused

    assert asyncio.run(leave()) == ([1], True)


def test_nor_is_it_left_when_a_scope_of_anyio_is_canceled():
    ended = []

    async def leave():
        threads = RouteThreads(threads=1, share=1)
        with move_on_after(0.01):
            await threads.run("a", lambda: ended.append(time.sleep(0.1)))
        return len(ended)

    assert asyncio.run(leave()) == 1


def test_a_tenant_whose_requests_take_the_processor_has_one_turn_at_a_time():
    running, most = [], []

    def spin():
        running.append(1)
        most.append(len(running))
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        running.pop()

    async def run():
        threads = RouteThreads(threads=4, share=4)
        await asyncio.gather(*(threads.run("greedy", spin) for _ in range(16)))

    asyncio.run(run())
    assert (max(most[:2]), max(most[8:])) == (UNKNOWN_TURNS, 1)


def test_what_is_open_is_counted_by_client_and_freed():
    counter = OpenCount("streams")
    with counter.count("a", 1), counter.count("b", 1), pytest.raises(RateLimited, match="1 streams open"):
        counter.count("a", 1).__enter__()
    assert not counter.open


def test_large_bodies_of_a_tenant_wait_for_each_other_and_not_for_those_of_others():
    async def run():
        budget, order, large = ByteBudget(total_bytes=300_000, tenant_bytes=200_000), [], 150_000

        async def hold(name, tenant, until):
            async with budget.hold(tenant) as room:
                await room.grow(large)
                order.append(name)
                await until.wait()

        done, never = asyncio.Event(), asyncio.Event()
        never.set()
        first = asyncio.create_task(hold("first", "greedy", done))
        await asyncio.sleep(0)
        second = asyncio.create_task(hold("second", "greedy", never))
        await asyncio.sleep(0)
        await asyncio.create_task(hold("other", "modest", never))
        done.set()
        await asyncio.gather(first, second)
        return order, budget.used

    assert asyncio.run(run()) == (["first", "other", "second"], {})


def test_without_room_in_time_a_body_is_refused(monkeypatch):
    monkeypatch.setattr(bodies, "WAIT_S", 0.05)

    async def run():
        budget = ByteBudget(total_bytes=100_000, tenant_bytes=100_000)
        async with budget.hold("a") as first, budget.hold("b") as second:
            await first.grow(70_000)
            await first.grow(90_000)
            with pytest.raises(Busy):
                await second.grow(70_000)
            await second.grow(1000)  # a small one needs no room
            return first.held_bytes, second.held_bytes

    assert asyncio.run(run()) == (90_000, 0)


def test_one_check_of_a_server_is_made_for_all_that_ask_at_once():
    calls = []

    async def run():
        check = ServerCheck("store", lambda: calls.append(time.sleep(0.05)))
        return await asyncio.gather(*(check.is_usable() for _ in range(60)))

    assert asyncio.run(run()) == [True] * 60
    assert len(calls) == 1


def test_a_server_that_hangs_is_unusable_for_all_and_asked_once(monkeypatch):
    monkeypatch.setattr("api.readiness.LIMIT_S", 0.05)
    release, calls = threading.Event(), []

    def hang():
        calls.append(1)
        release.wait(LIMIT_S)

    async def run():
        check = ServerCheck("store", hang, valid_s=0)
        first = await asyncio.gather(*(check.is_usable() for _ in range(60)))
        release.set()
        await check.running
        return first, await check.is_usable()

    assert asyncio.run(run()) == ([False] * 60, True)
    assert len(calls) == 2


def test_what_is_wrong_with_a_server_is_in_the_log_alone(caplog):
    def fail():
        raise StorageUnavailable("the store does not answer: store.internal:9000")

    assert not asyncio.run(ServerCheck("store", fail).is_usable())
    assert "not ready: store: the store does not answer: store.internal:9000" in caplog.text
