"""Work that ends with its client."""

import asyncio
import tempfile
import time

import pytest
from fastapi import Request
from starlette.exceptions import HTTPException

from api.disconnects import CLIENT_GONE, run_while_connected
from api.services.batch_turns import MAX_IN_FLIGHT, BatchTurns
from api.spooling import read_blocks, spool_body
from jobs.cancellation import check_canceled
from jobs.errors import InvalidJob, QuotaExceeded


class Client:
    """A client that sends a body and stays until it is told to leave."""

    def __init__(self, *parts):
        self.parts = list(parts)
        self.leaves = asyncio.Event()

    async def receive(self):
        if self.parts:
            return {"type": "http.request", "body": self.parts.pop(0), "more_body": bool(self.parts)}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    def request(self):
        return Request({"type": "http", "method": "POST", "headers": []}, self.receive)


def test_work_in_a_thread_ends_when_its_client_leaves():
    async def leave_while_working():
        client = Client()
        loop, steps = asyncio.get_running_loop(), []

        def work():
            loop.call_soon_threadsafe(client.leaves.set)
            while True:
                steps.append(1)
                check_canceled()
                time.sleep(0.001)

        with pytest.raises(HTTPException) as caught:
            await run_while_connected(client.request(), work)
        return caught.value.status_code, bool(steps)

    assert asyncio.run(leave_while_working()) == (CLIENT_GONE, True)


def test_work_whose_client_stays_returns_what_it_returns_and_raises_what_it_raises():
    def fail():
        check_canceled()
        raise InvalidJob([])

    async def stay():
        assert await run_while_connected(Client().request(), lambda: 3) == 3
        with pytest.raises(InvalidJob):
            await run_while_connected(Client().request(), fail)

    asyncio.run(stay())


def test_a_body_lies_in_a_file_and_nowhere_else():
    parts = [b"x" * 2**20, b"y" * 10, b"z" * 2**20]

    async def spool():
        with tempfile.TemporaryFile() as file:
            digest = await spool_body(Client(*parts).request(), file)
            return digest, b"".join(read_blocks(file))

    digest, body = asyncio.run(spool())
    assert (len(digest), body) == (64, b"".join(parts))


def test_a_body_that_breaks_off_is_no_defect_of_the_service():
    async def leave():
        client = Client()
        client.leaves.set()
        with tempfile.TemporaryFile() as file, pytest.raises(HTTPException):
            await spool_body(client.request(), file)

    asyncio.run(leave())


def test_batches_of_a_tenant_are_checked_one_after_the_other_and_beside_those_of_others():
    async def check():
        turns, order = BatchTurns(), []

        async def batch(tenant, ends):
            async with turns.arrival(tenant), turns.check(tenant):
                order.append(tenant)
                await ends.wait()

        first, others = asyncio.Event(), asyncio.Event()
        others.set()
        tasks = [asyncio.create_task(batch("greedy", first))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(batch("greedy", others)) for _ in range(3)] + [asyncio.create_task(batch("late", others))]
        await tasks[-1]
        first.set()
        await asyncio.gather(*tasks)
        return order, turns.in_flight, turns.turns

    assert asyncio.run(check()) == (["greedy", "late", "greedy", "greedy", "greedy"], {}, {})


def test_a_tenant_sends_a_bounded_number_of_batches_at_a_time():
    async def send():
        turns = BatchTurns()
        arrivals = [turns.arrival("greedy") for _ in range(MAX_IN_FLIGHT)]
        for arrival in arrivals:
            await arrival.__aenter__()
        with pytest.raises(QuotaExceeded, match="may send 8 batches at a time"):
            await turns.arrival("greedy").__aenter__()
        async with turns.arrival("late"):
            pass
        for arrival in arrivals:
            await arrival.__aexit__(None, None, None)
        return turns.in_flight

    assert asyncio.run(send()) == {}
