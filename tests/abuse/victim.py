"""The victim: a tenant whose requests must be answered whatever others do.

The probe is an open loop: each request has its time in a schedule that does not wait for the answers before it, and its latency
counts from that time. So a stall of three seconds shows as the three seconds that all requests due meanwhile had to wait.
`late_s` says by how much the probe itself was late to send one: the part of the latencies that is the client's own.
"""

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx2
from PIL import Image

PATIENCE_S = 5.0  # of a client that waits for an answer
DELIVERY_PATIENCE_S = 10.0
HOLD_S = 1.0  # how long a stream is followed before something happens
PER_SECOND = {"healthz": 5.0, "poll": 6.0, "list": 3.0, "submit": 3.0, "upload": 1.0, "stream": 1.0}
JOB = {
    "model": "idle",
    "source": {"seed": 3},
    "points": [{"handle": [10, 10], "target": [20, 12]}],
    "retain_for_s": 3600,
}


class Unserved(Exception):
    """Raised when an answer is another one than the request deserves."""


@dataclass(frozen=True)
class Observation:
    """How one request of the victim went."""

    kind: str
    at_s: float  # of the schedule, from its beginning on
    latency_s: float
    failure: str | None = None


class Victim:
    """The victim's client."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        self.client = httpx2.AsyncClient(base_url=url, headers=headers, timeout=None, limits=limits)
        self.observations: list[Observation] = []
        self.late_s = 0.0
        self.begin = 0.0
        self.job = ""
        self.webhook = ""
        self.deliveries: dict[str, asyncio.Future[None]] = {}
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "healthz": self.healthz, "poll": self.poll, "list": self.list_jobs, "submit": self.submit, "upload": self.upload,
            "stream": self.stream,
        }  # fmt: skip
        self.numbers = itertools.count()
        self.tasks: set[asyncio.Task[None]] = set()

    async def prepare(self, receiver_url: str) -> None:
        """Create the job that is polled, and the webhook that is told of canceled jobs."""
        self.job = (await self.ask("POST", "/v1/jobs", 202, json=JOB)).json()["id"]
        for old in (await self.ask("GET", "/v1/webhooks", 200)).json()["webhooks"]:
            await self.ask("DELETE", f"/v1/webhooks/{old['id']}", 204)
        hook = {"url": receiver_url, "events": ["job.canceled"], "every_job": False}
        self.webhook = (await self.ask("POST", "/v1/webhooks", 201, json=hook)).json()["id"]

    async def ask(self, method: str, path: str, status: int, **options: Any) -> httpx2.Response:
        """Make a request. Raises Unserved unless the status is the expected one."""
        answer = await self.client.request(method, path, **options)
        if answer.status_code != status:
            raise Unserved(f"{method} {path.split('?')[0][:12]}: {answer.status_code} {answer.text[:200]}")
        return answer

    async def healthz(self) -> None:
        """Ask like an orchestrator: without a key, on a connection of its own."""
        async with httpx2.AsyncClient(base_url=self.url, timeout=None) as client:
            answer = await client.get("/healthz")
        if answer.status_code != 200:
            raise Unserved(f"/healthz: {answer.status_code}")

    async def poll(self) -> None:
        await self.ask("GET", f"/v1/jobs/{self.job}", 200)

    async def list_jobs(self) -> None:
        await self.ask("GET", "/v1/jobs?limit=5", 200)

    async def submit(self) -> None:
        await self.ask("POST", "/v1/jobs", 202, json=JOB)

    async def upload(self) -> None:
        """Upload a small picture that is new each time."""
        picture = io.BytesIO()
        number = next(self.numbers)
        Image.new("RGB", (32, 32), (number % 256, number // 256 % 256, 9)).save(picture, format="PNG")
        await self.ask("POST", "/v1/uploads", 201, content=picture.getvalue())

    async def stream(self) -> None:
        """Submit a job and follow it: the first snapshot must come. What comes then is observed apart."""
        job_id = str(uuid4())
        await self.ask("PUT", f"/v1/jobs/{job_id}", 202, json=JOB | {"webhooks": [self.webhook]})
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        follower = asyncio.create_task(self.follow(job_id, opened))
        try:
            await asyncio.wait([opened, follower], return_when=asyncio.FIRST_COMPLETED)
            if not opened.done():
                await follower  # raises
        except BaseException:
            follower.cancel()
            raise
        self.start(self.see_the_end(job_id, follower))

    async def follow(self, job_id: str, opened: asyncio.Future[None]) -> None:
        """Read a job's stream until the job is canceled. Raises Unserved when it ends before."""
        async with self.client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            async for line in answer.aiter_lines():
                if line == "event: snapshot" and not opened.done():
                    opened.set_result(None)
                if line == "event: job.canceled":
                    return
        raise Unserved(f"the stream ended early: {answer.status_code}")

    async def see_the_end(self, job_id: str, follower: "asyncio.Task[None]") -> None:
        """Cancel the job after a while: the stream must tell it, and so must the webhook."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(HOLD_S)
        self.deliveries[job_id] = delivered = loop.create_future()
        due = loop.time()

        async def told() -> None:
            await self.ask("POST", f"/v1/jobs/{job_id}/cancel", 200)
            await follower

        await asyncio.gather(self.observe("event", due, told), self.observe("delivery", due, lambda: delivered))
        follower.cancel()

    async def observe(self, kind: str, due: float, action: Callable[[], Awaitable[None]]) -> None:
        """Do something that was due at a time, and record how it went."""
        loop, failure = asyncio.get_running_loop(), None
        patience_s = DELIVERY_PATIENCE_S if kind == "delivery" else PATIENCE_S
        try:
            async with asyncio.timeout_at(due + patience_s):
                await action()
        except TimeoutError:
            failure = f"nothing within {patience_s:g} s"
        except (httpx2.TransportError, Unserved) as error:
            failure = f"{type(error).__name__}: {error}"[:300]
        self.observations.append(Observation(kind, due - self.begin, loop.time() - due, failure))

    def start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @asynccontextmanager
    async def probing(self, kinds: tuple[str, ...] | None = None) -> AsyncIterator[None]:
        """Make requests by the schedule while the context is open; then wait for the last answers."""
        self.begin = asyncio.get_running_loop().time()
        self.observations, self.late_s = [], 0.0
        loops = [asyncio.create_task(self.keep_asking(kind)) for kind in kinds or PER_SECOND]
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            while self.tasks:
                await asyncio.wait(set(self.tasks))

    async def keep_asking(self, kind: str) -> None:
        """Make requests of one kind at their times, whether those before are answered or not."""
        loop, interval_s = asyncio.get_running_loop(), 1 / PER_SECOND[kind]
        phase = list(PER_SECOND).index(kind) / len(PER_SECOND)
        for number in itertools.count():
            due = self.begin + (number + phase) * interval_s
            await asyncio.sleep(max(0.0, due - loop.time()))
            self.late_s = max(self.late_s, loop.time() - due)
            self.start(self.observe(kind, due, self.kinds[kind]))

    async def close(self) -> None:
        await self.client.aclose()


@asynccontextmanager
async def receiving(victim: Victim) -> AsyncIterator[str]:
    """Take the victim's deliveries; yields the address of the receiver."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        body = (await reader.readexactly(length)).decode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()
        for job_id in [job_id for job_id in victim.deliveries if job_id in body]:
            delivered = victim.deliveries.pop(job_id)
            if not delivered.done():
                delivered.set_result(None)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
