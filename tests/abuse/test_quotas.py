"""Limits of a tenant under concurrency: what is counted must be what is let in."""

import asyncio

import httpx2
from sqlalchemy import func, select, update

from jobs.tables import Job, Tenant
from tests.abuse.documents import JOB

SUBMITS, QUOTA = 120, 50


def test_a_quota_of_50_queued_jobs_lets_50_of_120_parallel_submits_in(arena):
    key = arena.make_key("bounded")
    with arena.sessions.begin() as session:
        session.execute(update(Tenant).where(Tenant.id == "bounded").values(max_queued=QUOTA))
    statuses = asyncio.run(submit_at_once(arena.url, key))
    with arena.sessions() as session:
        queued = session.scalar(select(func.count()).where(Job.tenant == "bounded"))
    assert (queued, statuses.count(202)) == (QUOTA, QUOTA), statuses


async def submit_at_once(url: str, key: str) -> list[int]:
    """Submit from connections of their own until each request has been let in or refused for good.

    A 503 says that the service is busy, not that the quota is full: it is sent again.
    """

    async def submit() -> int:
        for _ in range(50):
            answer = await client.post("/v1/jobs", json=JOB)
            if answer.status_code != 503:
                break
            await asyncio.sleep(0.1)
        return answer.status_code

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60, limits=limits) as client:
        return await asyncio.gather(*(submit() for _ in range(SUBMITS)))
