"""What the API does a second: submissions beside a bare route with one INSERT, polls of many clients, events to many streams.

Run as a program it serves the bare route: `python -m benchmarks.api_speed PORT`, with the stack's environment.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID, uuid4

import psutil
import uvicorn
from fastapi import Body, FastAPI
from sqlalchemy import insert, text, update

from embedded.keys import local_key
from embedded.processes import Child, start
from embedded.servers import free_port, speaks_http
from embedded.service import START_LIMIT_S, prepare, start_part
from embedded.stack import Stack, local_stack
from jobs.database import make_sessions
from jobs.environment import read_settings
from jobs.tables import DEFAULT_TENANT, Job, Webhook

JOB = {"model": "demo-faces", "source": {"seed": 3}, "points": [{"handle": [75, 80], "target": [59, 80]}]}
CLIENTS = 16  # that submit, each the next job once the last was accepted
ROUNDS, ROUND_S = 3, 4.0  # of submissions and of the bare route in turn
POLLERS, EVERY_S = 64, 0.5
STREAMS = 200
CHANGES = 10  # of the job that they follow
UNLIMITED = {
    f"DRAGQUEUE_{name}": "100000000" for name in ("REQUESTS_PER_MINUTE", "SUBMITS_PER_MINUTE", "MAX_QUEUED", "MAX_STREAMS")
}


class Connection:
    """One keep-alive connection that costs its process as little as it can."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.head = f"Host: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"

    async def __aenter__(self) -> "Connection":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, method: str, path: str, body: bytes = b"", more: str = "") -> tuple[int, bytes]:
        """Status and body of an answer that says how long it is."""
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{self.head}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head[9:12]), await self.reader.readexactly(length)

    async def lines(self, path: str) -> Any:
        """Of a stream of events, as they come."""
        self.writer.write(f"GET {path} HTTP/1.1\r\n{self.head}\r\n".encode())
        while line := await self.reader.readline():
            yield line


@dataclass(frozen=True)
class Speed:
    """Requests a second, of each round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class Polls:
    latencies_s: list[float]
    grown_bytes: int  # of the API's memory background_thread

    def percentile_ms(self, percent: int) -> float:
        return 1000 * statistics.quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class FanOut:
    """From the commit of a change until every stream has it, of each change."""

    seconds: list[float]


@dataclass(frozen=True)
class Figures:
    bare: Speed
    submits: Speed
    polls: Polls
    fan_out: FanOut

    @property
    def share(self) -> float:
        """Of the bare route's rate."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.submits.rounds, self.bare.rounds, strict=True))


class Site:
    """The API and the bare route on real servers, without workers."""

    def __init__(self, stack: Stack, cleanup: ExitStack) -> None:
        prepare(stack.settings())
        self.sessions = make_sessions(stack.settings().database_url)
        cleanup.callback(self.sessions.kw["bind"].dispose)
        self.key = local_key(stack)
        self.api_port, self.bare_port = free_port(), free_port()
        self.api = start_part(stack, "api", ["--port", str(self.api_port)], cleanup)
        self.bare = start_bare(stack, self.bare_port, cleanup)
        for child, port in ((self.api, self.api_port), (self.bare, self.bare_port)):
            child.wait_until(lambda port=port: speaks_http(f"http://127.0.0.1:{port}/healthz"), START_LIMIT_S)  # type: ignore[misc]
        with self.sessions.begin() as session:  # so that every event has a delivery
            session.execute(text("CREATE TABLE bare (id uuid PRIMARY KEY, document jsonb)"))
            session.execute(
                insert(Webhook).values(
                    id=uuid4(),
                    tenant=DEFAULT_TENANT,
                    url="https://example.com/",
                    events=["job.queued"],
                    every_job=True,
                    secrets=[],
                )
            )

    async def submit(self, connection: Connection) -> UUID:
        body = json.dumps(JOB).encode()
        status, answer = await connection.ask("POST", "/v1/jobs", body, f"Idempotency-Key: {uuid4()}\r\n")
        assert status == 202, answer
        return UUID(json.loads(answer)["id"])

    async def insert(self, connection: Connection) -> None:
        status, answer = await connection.ask("POST", "/", json.dumps(JOB).encode())
        assert status == 200, answer


def start_bare(stack: Stack, port: int, cleanup: ExitStack) -> Child:
    command = [sys.executable, "-m", "benchmarks.api_speed", str(port)]
    child = start("bare route", command, log=stack.logs / "bare.log", environment=stack.environment)
    cleanup.callback(child.stop)
    return child


def measure(seconds: float, seen: Callable[[str], None]) -> Figures:
    """Args:
    seconds: of the polls.
    """
    with local_stack(environment=os.environ | UNLIMITED) as stack, ExitStack() as cleanup:
        site = Site(stack, cleanup)
        speeds: tuple[list[float], list[float]] = [], []
        for number in range(ROUNDS):
            seen(f"submissions beside a bare INSERT, round {number + 1} of {ROUNDS}")
            speeds[0].append(asyncio.run(rate(site.bare_port, site.key, site.insert)))
            speeds[1].append(asyncio.run(rate(site.api_port, site.key, site.submit)))
        seen(f"{POLLERS} clients that poll every {EVERY_S:g} s")
        polls = asyncio.run(poll(site, seconds))
        seen(f"{STREAMS} streams of events")
        return Figures(Speed(speeds[0]), Speed(speeds[1]), polls, asyncio.run(fan_out(site)))


async def rate(port: int, key: str, act: Callable[[Connection], Any]) -> float:
    """Requests a second of clients that wait for their answers."""
    until, count = time.monotonic() + ROUND_S, 0

    async def client() -> None:
        nonlocal count
        async with Connection(port, key) as connection:
            while time.monotonic() < until:
                await act(connection)
                count += 1

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return count / (time.monotonic() - began)


async def poll(site: Site, seconds: float) -> Polls:
    """An open load: clients look at their job at fixed times, whether the last answer has come or not. The jobs run."""
    latencies: list[float] = []
    process = psutil.Process(site.api.process.pid)

    async def client(number: int, began: float, least_s: float) -> None:
        async with Connection(site.api_port, site.key) as connection:
            job_id = await site.submit(connection)
            run(site, job_id, {"iteration": 1})
            for due in times(began + EVERY_S * number / POLLERS, began + least_s):
                await asyncio.sleep(due - time.monotonic())
                status, _ = await connection.ask("GET", f"/v1/jobs/{job_id}")
                assert status == 200
                latencies.append(time.monotonic() - due)

    await asyncio.gather(*(client(number, time.monotonic() + 2, 2.0) for number in range(POLLERS)))  # to warm up
    latencies.clear()
    before = process.memory_info().rss
    await asyncio.gather(*(client(number, time.monotonic() + 2, seconds) for number in range(POLLERS)))
    return Polls(latencies, process.memory_info().rss - before)


def times(begin: float, end: float) -> Iterator[float]:
    while begin < end:
        yield begin
        begin += EVERY_S


def run(site: Site, job_id: UUID, progress: dict[str, Any]) -> None:
    """As a worker would write it."""
    with site.sessions.begin() as session:
        lease = text("now() + interval '1 hour'")
        session.execute(
            update(Job).where(Job.id == job_id).values(state="running", attempt=1, lease_expires_at=lease, progress=progress)
        )


async def fan_out(site: Site) -> FanOut:
    """One job whose progress changes, and everybody who follows it."""
    async with Connection(site.api_port, site.key) as connection:
        job_id = await site.submit(connection)
    heard = [asyncio.Queue[int]() for _ in range(STREAMS)]

    async def follow(told: asyncio.Queue[int]) -> None:
        async with Connection(site.api_port, site.key) as connection:
            async for line in connection.lines(f"/v1/jobs/{job_id}/events"):
                if b'"iteration":' in line:
                    told.put_nowait(int(line.split(b'"iteration":')[1].split(b"}")[0].split(b",")[0]))

    followers = [asyncio.create_task(follow(told)) for told in heard]
    waits = []
    for iteration in range(CHANGES):
        await asyncio.sleep(1)
        run(site, job_id, {"iteration": iteration})
        began = time.monotonic()
        await asyncio.gather(*(until(told, iteration) for told in heard))
        waits.append(time.monotonic() - began)
    for follower in followers:
        follower.cancel()
    return FanOut(waits[1:])  # the first comes with the connections


async def until(told: asyncio.Queue[int], iteration: int) -> None:
    while await told.get() != iteration:
        pass


def bare_app(database_url: str) -> FastAPI:
    app, sessions = FastAPI(), make_sessions(database_url)
    statement = text("INSERT INTO bare (id, document) VALUES (:id, CAST(:document AS jsonb))")

    @app.post("/")
    def one_insert(document: Annotated[dict[str, Any], Body()]) -> dict[str, str]:
        key = uuid4()
        with sessions.begin() as session:
            session.execute(statement, {"id": key, "document": json.dumps(document)})
        return {"id": str(key)}

    return app


if __name__ == "__main__":
    settings = read_settings(os.environ)
    uvicorn.run(bare_app(settings.database_url), host="127.0.0.1", port=int(sys.argv[1]), log_level="info")
