"""The process that attacks: `python -m tests.abuse.attacker`, told by one line of JSON what to do.

It has nothing but the address and some keys. It runs at a low priority, because it shares the cores with the service and with
the victim's client, which a real attacker does not; not at the lowest, or a busy service would throttle its own attacker. What it
sends is made before it begins, so that sending costs it little, and the CPU time that it takes is reported. It ends by os._exit
at its time, whatever is under way: its last requests are clients that go away.

It prints "ready" once it is prepared, begins when it is sent a line, and prints a Report as JSON at the end.
"""

import itertools
import json
import os
import resource
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import httpx2

from tests.abuse.attack import Strike

ANSWER_LIMIT_S = 30.0
BUSY_LIMIT_S = 30.0
CHUNK_BYTES = 2**18
NICE = 5  # a third of the weight of the others
JSON = "application/json"


@dataclass(frozen=True)
class Orders:
    """What the attacker is told."""

    attack: str
    host: str
    port: int
    keys: list[str]  # of one tenant
    connections: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """What the attacker has done."""

    answers: dict[str, int]  # by status; also what was begun, sent to its end, aborted, cut by the server
    received_bytes: int
    cpu_s: float
    memory_mb: float  # at most
    trouble: str | None = None  # an error of the attack itself


@dataclass(frozen=True)
class Request:
    """A request as bytes; many may share one body."""

    head: bytes
    body: bytes = b""

    def parts(self, size: int) -> Iterable[bytes]:
        """Return head and body cut into parts."""
        whole = memoryview(self.head + self.body)
        return (bytes(whole[begin : begin + size]) for begin in range(0, len(whole), size))


class Attacker:
    """What attacks are made with: requests, and connections that behave well or badly."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.host, self.port = orders.host, orders.port
        self.key = orders.keys[0]
        self.turns = itertools.cycle(orders.keys)
        self.deadline = float("inf")
        self.answers: Counter[str] = Counter()
        self.received_bytes = 0
        self.trouble: str | None = None
        self.lock = threading.Lock()
        headers = {"Authorization": f"Bearer {self.key}"}
        self.client = httpx2.Client(base_url=f"http://{self.host}:{self.port}", headers=headers, timeout=60)

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Make a request of the preparation, and return its JSON. It is made again while the service is busy."""
        deadline = time.monotonic() + BUSY_LIMIT_S
        while (answer := self.client.request(method, path, **options)).status_code in (429, 503):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def request(
        self, method: str, path: str, body: bytes = b"", *, key: str | None = "", kind: str | None = JSON,
        headers: Mapping[str, str] | None = None,
    ) -> Request:  # fmt: skip
        """Make a request.

        Args:
            key: "" takes the first, None sends none.
            kind: the content type.
        """
        fields = {"Host": f"{self.host}:{self.port}", "Connection": "close"}
        if key is not None:
            fields["Authorization"] = f"Bearer {key or self.key}"
        if body or method in ("POST", "PUT", "PATCH"):
            fields |= {"Content-Length": str(len(body))} | ({} if kind is None else {"Content-Type": kind})
        fields |= headers or {}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return Request("\r\n".join(lines).encode("latin-1"), body)

    def with_each_key(self, method: str, path: str, body: bytes = b"", **options: Any) -> list[Request]:
        """Make the same request once for each of the tenant's keys, so that a limit for each key does not end the attack."""
        return [self.request(method, path, body, key=key, **options) for key in self.orders.keys]

    @contextmanager
    def connect(self, receive_bytes: int | None = None) -> Any:
        """Open a connection."""
        with socket.socket() as connection:
            connection.settimeout(ANSWER_LIMIT_S)
            if receive_bytes is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            connection.connect((self.host, self.port))
            yield connection

    def count(self, what: str, received: int = 0) -> None:
        with self.lock:
            self.answers[what] += 1
            self.received_bytes += received

    def flood(self, *requests: Request) -> Strike:
        """Return a strike that sends the next of the requests and reads its answer."""
        turn = itertools.cycle(requests)
        return lambda: self.exchange(next(turn))

    def exchange(self, request: Request) -> None:
        """Send a request and read its answer to the end."""
        with self.connect() as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may be refused before it has arrived
                connection.sendall(request.head)
                self.count("begun")
                connection.sendall(request.body)
                self.count("sent")
            self.read_answer(connection)

    def read_answer(self, connection: socket.socket) -> None:
        """Read until the server closes, and count the status."""
        first, received = b"", 0
        with suppress(OSError):
            while chunk := connection.recv(CHUNK_BYTES):
                first, received = first or chunk[:12], received + len(chunk)
        self.count(first[9:12].decode("latin-1") or "no answer", received)

    def aborted(self, *requests: Request, keep: float = 0.5, read_bytes: int = 0) -> Strike:
        """Return a strike that sends a part of a request, or all of it, reads a little and resets the connection.

        Args:
            keep: the part of the body that is sent.
        """
        turn = itertools.cycle(requests)

        def strike() -> None:
            request = next(turn)
            with self.connect() as connection, suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(request.head)
                connection.sendall(request.body[: int(len(request.body) * keep)])
                if read_bytes:
                    connection.recv(read_bytes)
                self.count("aborted")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        return strike

    def slow_reader(self, *requests: Request, pause_s: float = 0.1) -> Strike:
        """Return a strike that asks for something large and reads a few bytes of it now and then."""
        turn = itertools.cycle(requests)

        def strike() -> None:
            request = next(turn)
            with self.connect(receive_bytes=4096) as connection:
                connection.sendall(request.head + request.body)
                self.count("sent")
                first = connection.recv(12)
                self.count(first[9:12].decode("latin-1") or "no answer")
                while self.time_left() and connection.recv(256):
                    time.sleep(pause_s)

        return strike

    def trickle(self, request: Request, pause_s: float = 0.05, part_bytes: int = 1) -> Strike:
        """Return a strike that sends a request in tiny parts, for as long as it is let."""

        def strike() -> None:
            with self.connect() as connection:
                self.count("begun")
                try:
                    for part in request.parts(part_bytes):
                        connection.sendall(part)
                        time.sleep(pause_s)
                except (BrokenPipeError, ConnectionResetError):
                    self.count("cut")
                    return
                self.read_answer(connection)

        return strike

    def held(self, data: bytes) -> Strike:
        """Return a strike that sends something unfinished and waits until the server ends the connection."""

        def strike() -> None:
            with self.connect() as connection:
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(data)
                    self.count("sent")
                connection.settimeout(max(0.01, self.time_left()))
                try:
                    first = connection.recv(CHUNK_BYTES)
                except TimeoutError:
                    self.count("held")
                    return
                self.count(first[9:12].decode("latin-1") or "cut")
                time.sleep(0.1)

        return strike

    def time_left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def run(self, strike: Strike) -> Report:
        """Strike with every connection until the time is over."""
        self.answers.clear()
        before = cpu_s()
        self.deadline = time.monotonic() + self.orders.seconds
        for _ in range(self.orders.connections):
            threading.Thread(target=self.keep_striking, args=(strike,), daemon=True).start()
        time.sleep(self.time_left())
        with self.lock:
            memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            return Report(dict(self.answers), self.received_bytes, round(cpu_s() - before, 2), round(memory_mb), self.trouble)

    def keep_striking(self, strike: Strike) -> None:
        while self.time_left():
            try:
                strike()
            except OSError as error:
                self.count(type(error).__name__)
                time.sleep(0.01)
            except Exception as error:
                self.trouble = repr(error)[:500]
                return


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def lower_priority() -> None:
    """Let the others go first; where the kernel groups processes by session, the group's priority is what counts."""
    os.nice(NICE)
    with suppress(OSError), open("/proc/self/autogroup", "w") as autogroup:
        autogroup.write(str(NICE))


def main() -> None:
    from tests.abuse.attacks import ATTACKS

    orders = Orders(**json.loads(sys.stdin.readline()))
    attacker = Attacker(orders)
    strike = ATTACKS[orders.attack].prepare(attacker)
    lower_priority()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    report = attacker.run(strike)
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    sys.stdout.flush()
    os._exit(0)  # threads are in the middle of their requests


if __name__ == "__main__":
    main()
