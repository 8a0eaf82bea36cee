"""Batches on their way in: spooled, and checked in turns."""

import asyncio
import tempfile

import pytest
from fastapi import Request

from api.services.batch_turns import MAX_IN_FLIGHT, BatchTurns
from api.spooling import read_blocks, spool_body
from jobs.errors import QuotaExceeded


def request(*parts):
    """A request whose body comes in these parts."""
    waiting = list(parts)

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_a_body_lies_in_a_file_and_nowhere_else():
    parts = [b"x" * 2**20, b"y" * 10, b"z" * 2**20]

    async def spool():
        with tempfile.TemporaryFile() as file:
            digest = await spool_body(request(*parts), file)
            return digest, b"".join(read_blocks(file))

    digest, body = asyncio.run(spool())
    assert (len(digest), body) == (64, b"".join(parts))


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
