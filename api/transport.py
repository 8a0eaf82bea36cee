"""The transport of requests: how many connections there are, and how long each may take to send and to read.

A proxy in front of the service does the same and more. This is what holds without one.
"""

import asyncio
import logging
import resource
import socket
import sys
import time
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobs.settings import Settings

HEAD_S = 10.0  # in which a request's head must arrive, and what a refused request still sends
WRITE_S = 60.0  # in which a client must read what a full buffer holds
BODY_GRACE_S, BODY_BYTES_PER_S = 20.0, 10_000  # a body must arrive this fast, after a while
REFUSAL_S = 0.25  # that a refusal takes where there are many: a client that repeats it at once occupies nobody else
QUICK_REFUSALS = 20  # in a second
SPARE_FILES = 200  # of the process, for the database, the store and decoders
DISCARD_BYTES = 2**20  # of a body that nobody reads: so much is taken, that a client may finish and see why
TICKS = 5  # of 0.1 s, between two looks for connections that were reset
MIN_CONNECTIONS = 20  # also where few files may be open
SMALL_CHUNKS, SMALL_CHUNK_BYTES = 1_000, 64  # so many chunks of a body must be larger on average
SWITCH_INTERVAL_S = 0.001  # after which a thread lets the event loop go on; Python's own 5 ms add up with every thread
REFUSALS = (401, 429)
CLIENT_GONE = "the client has gone"
BACKLOG, ACCEPTED_AT_ONCE = 2048, 32  # connections that wait for the event loop, and that it takes in one round
logger = logging.getLogger(__name__)


class SlowBody(Exception):
    """Raised when a body arrives too slowly."""


class RequestTasks(set["asyncio.Task[None]"]):
    """The tasks of one connection's requests, which the server knows too."""

    def __init__(self, of_server: set["asyncio.Task[None]"]) -> None:
        super().__init__()
        self.of_server = of_server

    def add(self, task: "asyncio.Task[None]") -> None:
        """Keep a task until it has ended."""
        super().add(task)
        self.of_server.add(task)
        task.add_done_callback(self.of_server.discard)


class AnswerBroken(Exception):
    """Raised when an answer cannot go on after its beginning was sent: the client sees that it ends early."""


class Pace:
    """ASGI middleware that ends requests whose bodies arrive too slowly, and takes its time over refusals."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.second = self.refused = 0  # requests in this second

    async def slow_down(self) -> None:
        """Wait before a refusal where there are many."""
        now = int(time.monotonic())
        if now != self.second:
            self.second, self.refused = now, 0
        self.refused += 1
        if self.refused > QUICK_REFUSALS:
            await asyncio.sleep(REFUSAL_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received, waited_s, more = 0, 0.0, True

        async def receive_in_time() -> Message:
            nonlocal received, waited_s, more
            if not more:
                return await receive()
            began = time.monotonic()
            try:
                allowed_s = BODY_GRACE_S + received / BODY_BYTES_PER_S - waited_s
                async with asyncio.timeout(min(BODY_GRACE_S, allowed_s)):
                    message = await receive()
            except TimeoutError:
                raise SlowBody(f"a body must arrive with {BODY_BYTES_PER_S} bytes/s") from None
            waited_s += time.monotonic() - began
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
            return message

        async def send_refusals_slowly(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in REFUSALS:
                await self.slow_down()
            await send(message)

        try:
            await self.app(scope, receive_in_time, send_refusals_slowly)
        except asyncio.CancelledError as error:
            if error.args != (CLIENT_GONE,):
                raise
        except AnswerBroken as error:
            logger.warning("%s %s was cut short: %s", scope["method"], scope["path"], error)


class CountedConnection(h11.Connection):
    """A connection that refuses bodies in tiny chunks, each of which costs as much as a large one."""

    chunks = bytes_received = 0

    def next_event(self) -> Any:
        """Return the next event. Raises RemoteProtocolError."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self.chunks += 1
            self.bytes_received += len(event.data)
            if self.chunks > SMALL_CHUNKS and self.bytes_received < self.chunks * SMALL_CHUNK_BYTES:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        elif isinstance(event, h11.Request):
            self.chunks = self.bytes_received = 0
        return event


class LimitedProtocol(H11Protocol):
    """A connection of a client that has a time limit wherever it could wait for the client for ever."""

    max_connections = sys.maxsize
    waiting: dict["LimitedProtocol", None] = {}  # connections without a request in progress, the oldest first

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = CountedConnection(h11.SERVER, self.config.h11_max_incomplete_event_size or 2**16)
        self.tasks = RequestTasks(self.server_state.tasks)
        self.discarded = 0  # bytes since the last answer
        self.head_timer: asyncio.TimerHandle | None = None
        self.write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection; at the limit the one that has waited longest for a request goes, or else the new one."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            longest = next(iter(self.waiting), self)
            longest.stop_waiting_for_head()  # others may come in this round of the event loop
            longest.transport.abort()
        self.wait_for_head()

    def is_reset(self) -> bool:
        """Return whether the client has reset the connection; the event loop does not know while it reads nothing."""
        error: int = self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return error != 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and end the work that nobody waits for any more."""
        self.stop_waiting_for_head()
        if self.write_timer is not None:
            self.write_timer.cancel()
        super().connection_lost(exc)
        for task in self.tasks:
            task.cancel(CLIENT_GONE)

    def data_received(self, data: bytes) -> None:
        """Read what has arrived, unless nobody waits for an answer to it."""
        cycle = self.cycle
        if (cycle is None or cycle.response_complete) and self.is_reset():
            self.transport.abort()
            return
        super().data_received(data)
        if self.cycle is not cycle:
            self.discarded = 0
            self.stop_waiting_for_head()
        elif cycle is not None and cycle.response_complete:
            self.discarded += len(data)
            if self.discarded > DISCARD_BYTES:  # a refused body; the timer of the next head ends the connection
                self.transport.pause_reading()

    def on_response_complete(self) -> None:
        """Wait for the next request, which may have arrived already."""
        cycle = self.cycle
        self.wait_for_head()
        super().on_response_complete()
        if self.cycle is not cycle:
            self.stop_waiting_for_head()

    def pause_writing(self) -> None:
        """Give the client some time to read."""
        super().pause_writing()
        self.write_timer = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        if self.write_timer is not None:
            self.write_timer.cancel()

    def wait_for_head(self) -> None:
        """Close the connection unless a request's head arrives in time."""
        self.stop_waiting_for_head()
        if not self.transport.is_closing():
            self.waiting[self] = None
            self.head_timer = self.loop.call_later(HEAD_S, self.leave)

    def leave(self) -> None:
        """Close the connection; what the client has not read by then is lost after a while."""
        self.transport.close()
        self.loop.call_later(WRITE_S, self.transport.abort)

    def stop_waiting_for_head(self) -> None:
        """Let a request take its time."""
        self.waiting.pop(self, None)
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None


class Server(uvicorn.Server):
    """A server that takes few connections in one round of the event loop, so that those it has are served between them."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the system keeps the connections that wait."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        """End the connections that clients have reset in the meantime."""
        if counter % TICKS == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, LimitedProtocol) and connection.is_reset():
                    connection.transport.abort()
        return await super().on_tick(counter)


def serve(app: FastAPI, settings: Settings, host: str, port: int) -> None:
    """Serve the application until a signal ends the process."""
    LimitedProtocol.max_connections = max(MIN_CONNECTIONS, min(settings.max_connections, raise_file_limit() - SPARE_FILES))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="info", timeout_graceful_shutdown=10, http=LimitedProtocol, backlog=ACCEPTED_AT_ONCE
    )
    with bind(host, port) as listener:
        Server(config).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. Raises OSError.

    It says that it is TCP: only then asyncio lets small answers go at once, not after the 40 ms of a delayed acknowledgement.
    """
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener


def raise_file_limit() -> int:
    """Let the process open as many files as it may, and return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard
