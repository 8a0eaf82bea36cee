"""Measures what the API does in a second: submissions beside a bare route, polls of many clients, events to many streams."""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psutil
from sqlalchemy import insert, text, update

from benchmarks.child_programs import checkout_environment, module_command
from embedded.keys import local_key
from embedded.processes import Child, start
from embedded.servers import free_port, speaks_http
from embedded.service import START_LIMIT_S, prepare, start_part
from embedded.stack import Stack, local_stack
from jobs.database import make_sessions
from jobs.tables import DEFAULT_TENANT, Job, Webhook

JOB = {"model": "demo-faces", "source": {"seed": 3}, "points": [{"handle": [75, 80], "target": [59, 80]}]}
CLIENTS = 16  # that submit, each the next job once the last was accepted
POLLERS, POLL_INTERVAL_S = 64, 0.5
STREAMS = 200
WARM_UP_S = 2.0  # of polls that are not measured
UNLIMITED = {
    f"DRAGQUEUE_{name}": "100000000"
    for name in ("REQUESTS_PER_MINUTE", "SUBMITS_PER_MINUTE", "MAX_QUEUED", "MAX_STREAMS", "MAX_OPEN_REQUESTS")
}


@dataclass(frozen=True, kw_only=True)
class ApiLoad:
    """How much is asked of the API."""

    poll_s: float  # duration of the polls
    rounds: int  # of submissions and of the bare route in turn
    round_s: float
    changes: int  # of the job that the streams follow


class Connection:
    """A keep-alive HTTP connection that costs this process as little as it can."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.head = f"Host: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"

    async def __aenter__(self) -> "Connection":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def request(self, method: str, path: str, body: bytes = b"", more: str = "") -> tuple[int, bytes]:
        """Send a request and return status and body of an answer that has a Content-Length."""
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{self.head}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head[9:12]), await self.reader.readexactly(length)

    async def stream_lines(self, path: str) -> Any:
        """Yield the lines of a stream of events as they come."""
        self.writer.write(f"GET {path} HTTP/1.1\r\n{self.head}\r\n".encode())
        while line := await self.reader.readline():
            yield line


@dataclass(frozen=True)
class RequestRates:
    """The requests a second of each round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        """Return the rate of the round in the middle."""
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class Polls:
    """The latencies of polls at fixed times."""

    latencies_s: list[float]
    grown_bytes: int  # by which the API's memory grew meanwhile

    def percentile_ms(self, percent: int) -> float:
        """Return the latency that so many percent do not exceed."""
        return 1000 * statistics.quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class FanOut:
    """The time from the commit of each change until every stream has it."""

    seconds: list[float]


@dataclass(frozen=True)
class ApiFigures:
    """Everything that was measured of the API."""

    bare: RequestRates
    submits: RequestRates
    polls: Polls
    fan_out: FanOut

    @property
    def share(self) -> float:
        """Return the rate of submissions as a part of the bare route's, by rounds."""
        return statistics.median(submits / bare for submits, bare in zip(self.submits.rounds, self.bare.rounds, strict=True))


class MeasuredServers:
    """The API and the bare route on real servers, without workers."""

    def __init__(self, stack: Stack, cleanup: ExitStack) -> None:
        prepare(stack.settings())
        self.sessions = make_sessions(stack.settings().database_url)
        cleanup.callback(self.sessions.kw["bind"].dispose)
        self.key = local_key(stack)
        self.api_port, self.bare_port = free_port(), free_port()
        self.api = start_part(stack, "api", ["--port", str(self.api_port)], cleanup)
        self.bare = start_bare_route(stack, self.bare_port, cleanup)
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
        """Submit a job and return its id."""
        body = json.dumps(JOB).encode()
        status, answer = await connection.request("POST", "/v1/jobs", body, f"Idempotency-Key: {uuid4()}\r\n")
        assert status == 202, answer
        return UUID(json.loads(answer)["id"])

    async def insert(self, connection: Connection) -> None:
        """Ask the bare route for one INSERT."""
        status, answer = await connection.request("POST", "/", json.dumps(JOB).encode())
        assert status == 200, answer


def start_bare_route(stack: Stack, port: int, cleanup: ExitStack) -> Child:
    """Start the server of the bare route; `cleanup` stops it."""
    command, environment = module_command("benchmarks.bare_route", str(port)), checkout_environment(stack.environment)
    child = start("bare route", command, log=stack.logs / "bare.log", environment=environment)
    cleanup.callback(child.stop)
    return child


def measure_api(load: ApiLoad, report_phase: Callable[[str], None]) -> ApiFigures:
    """Measure everything on servers of our own; report each phase as it begins."""
    with local_stack(environment=os.environ | UNLIMITED) as stack, ExitStack() as cleanup:
        servers = MeasuredServers(stack, cleanup)
        bare: list[float] = []
        submits: list[float] = []
        for number in range(load.rounds):
            report_phase(f"submissions beside a bare INSERT, round {number + 1} of {load.rounds}")
            bare.append(asyncio.run(measure_rate(servers.bare_port, servers.key, servers.insert, load.round_s)))
            submits.append(asyncio.run(measure_rate(servers.api_port, servers.key, servers.submit, load.round_s)))
        report_phase(f"{POLLERS} clients that poll every {POLL_INTERVAL_S:g} s")
        polls = asyncio.run(measure_polls(servers, load.poll_s))
        report_phase(f"{STREAMS} streams of events")
        return ApiFigures(RequestRates(bare), RequestRates(submits), polls, asyncio.run(measure_fan_out(servers, load.changes)))


async def measure_rate(port: int, key: str, send: Callable[[Connection], Any], seconds: float) -> float:
    """Return the requests a second of clients that send the next request once the last is answered."""
    until, count = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal count
        async with Connection(port, key) as connection:
            while time.monotonic() < until:
                await send(connection)
                count += 1

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return count / (time.monotonic() - began)


async def measure_polls(servers: MeasuredServers, seconds: float) -> Polls:
    """Let clients poll running jobs at fixed times, whether the last answer has come or not (an open load)."""
    latencies: list[float] = []
    process = psutil.Process(servers.api.process.pid)

    async def client(number: int, began: float, least_s: float) -> None:
        async with Connection(servers.api_port, servers.key) as connection:
            job_id = await servers.submit(connection)
            set_progress(servers, job_id, {"iteration": 1})
            for due in poll_times(began + POLL_INTERVAL_S * number / POLLERS, began + least_s):
                await asyncio.sleep(due - time.monotonic())
                status, _ = await connection.request("GET", f"/v1/jobs/{job_id}")
                assert status == 200
                latencies.append(time.monotonic() - due)

    await asyncio.gather(*(client(number, time.monotonic() + 2, WARM_UP_S) for number in range(POLLERS)))
    latencies.clear()
    before = process.memory_info().rss
    await asyncio.gather(*(client(number, time.monotonic() + 2, seconds) for number in range(POLLERS)))
    return Polls(latencies, process.memory_info().rss - before)


def poll_times(begin: float, end: float) -> Iterator[float]:
    """Yield the times of a client's polls."""
    while begin < end:
        yield begin
        begin += POLL_INTERVAL_S


def set_progress(servers: MeasuredServers, job_id: UUID, progress: dict[str, Any]) -> None:
    """Write a job's progress as a worker would."""
    with servers.sessions.begin() as session:
        lease = text("now() + interval '1 hour'")
        session.execute(
            update(Job).where(Job.id == job_id).values(state="running", attempt=1, lease_expires_at=lease, progress=progress)
        )


async def measure_fan_out(servers: MeasuredServers, changes: int) -> FanOut:
    """Change the progress of one job that all streams follow, and wait each time until every stream has the change."""
    async with Connection(servers.api_port, servers.key) as connection:
        job_id = await servers.submit(connection)
    iterations = [asyncio.Queue[int]() for _ in range(STREAMS)]

    async def follow(received: asyncio.Queue[int]) -> None:
        async with Connection(servers.api_port, servers.key) as connection:
            async for line in connection.stream_lines(f"/v1/jobs/{job_id}/events"):
                if b'"iteration":' in line:
                    received.put_nowait(int(line.split(b'"iteration":')[1].split(b"}")[0].split(b",")[0]))

    followers = [asyncio.create_task(follow(received)) for received in iterations]
    waits = []
    for iteration in range(changes):
        await asyncio.sleep(1)
        set_progress(servers, job_id, {"iteration": iteration})
        began = time.monotonic()
        await asyncio.gather(*(wait_for_iteration(received, iteration) for received in iterations))
        waits.append(time.monotonic() - began)
    for follower in followers:
        follower.cancel()
    return FanOut(waits[1:])  # the first comes with the connections


async def wait_for_iteration(received: asyncio.Queue[int], iteration: int) -> None:
    """Wait until a stream has received this iteration."""
    while await received.get() != iteration:
        pass
