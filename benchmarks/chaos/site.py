"""The whole service on this machine with somebody who restarts what ends, as an init system would."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.chaos.faulty_store import FaultyStore
from embedded.keys import local_key
from embedded.processes import Child
from embedded.servers import free_port, speaks_http
from embedded.service import START_LIMIT_S, prepare, start_part
from embedded.stack import Stack, local_stack

REST_S = 0.3  # before what has ended is started again
QUICK = {
    "LEASE_S": "2", "BEAT_S": "0.4", "SWEEP_S": "0.5", "PROGRESS_INTERVAL_S": "0.1", "THREADS": "1", "DRAIN_GRACE_S": "0.3",
    "RETRY_DELAY_S": "0.2", "RETRY_DELAY_LIMIT_S": "1", "CHECKPOINT_S": "0.5", "TUNING_CHECKPOINT_S": "0.5",
    "PATIENCE_S": "10", "MAX_ATTEMPTS": "20", "TIDY_AFTER_S": "2", "LOAD_LIMIT_S": "30",
}  # fmt: skip


@dataclass
class Part:
    """A process that is kept running."""

    name: str
    child: Child
    ended: float | None = None  # when it was seen to have ended; time.monotonic()
    asleep_until: float | None = None  # stopped by a signal until then

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """With everything it started."""
        os.killpg(self.child.process.pid, number)

    def up(self) -> bool:
        return self.ended is None and self.asleep_until is None

    def computing(self) -> int | None:
        """The process id of a worker's child; None while it has none."""
        try:
            children = psutil.Process(self.child.process.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0].pid if children else None


@dataclass
class Site:
    stack: Stack
    store: FaultyStore
    url: str
    key: str
    servers: dict[str, Part]
    workers: dict[str, Part]
    others: dict[str, Part]  # API and reconcilers
    store_mode_until: float | None = None
    parts: dict[str, Part] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = self.servers | self.workers | self.others

    def tend(self) -> None:
        """Start again what has ended, wake what was stopped, open the store's door; called all the time."""
        now = time.monotonic()
        for part in self.parts.values():
            if part.asleep_until is not None and now >= part.asleep_until:
                part.kill(signal.SIGCONT)
                part.asleep_until = None
            if part.ended is None and part.child.process.poll() is not None:
                part.ended = now
            if part.ended is not None and now - part.ended >= REST_S:
                part.child, part.ended = part.child.again(), None
        if self.store_mode_until is not None and now >= self.store_mode_until:
            self.store.turn("open")
            self.store_mode_until = None

    def servers_up(self) -> bool:
        return self.store_mode_until is None and all(part.up() for part in self.servers.values())

    def settle(self) -> None:
        """Wake whatever sleeps and open the door."""
        for part in self.parts.values():
            part.asleep_until = part.asleep_until and 0.0
        self.store_mode_until = self.store_mode_until and 0.0
        self.tend()

    def stop(self) -> None:
        """End the service, not its servers."""
        self.settle()
        for part in (self.workers | self.others).values():
            part.child.stop()


@contextmanager
def running_site(state: Path, workers: int, slots: int) -> Iterator[Site]:
    """Args:
    state: folder for the servers' data, which must survive their being killed.
    slots: of each worker; with several it computes with two threads, so that it has two meetings.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRAGQUEUE_")}
    environment |= {f"DRAGQUEUE_{name}": value for name, value in QUICK.items()}
    if slots > 1:
        environment |= {"DRAGQUEUE_SLOTS": str(slots), "DRAGQUEUE_THREADS": "2"}
    with local_stack(state, environment) as stack, ExitStack() as cleanup:
        names = ("postgres", "valkey", "store")
        servers = {name: Part(name, child) for name, child in zip(names, stack.children, strict=True)}
        store = with_door(stack)
        prepare(stack.settings())
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        others = {"api": Part("api", start_part(stack, "api", ["--port", str(port)], cleanup))}
        for k in range(2):
            name = f"reconciler-{k}"
            others[name] = Part(name, start_part(stack, "reconciler", [], cleanup, name=name))
        started = {
            f"worker-{k}": start_part(stack, "worker", ["--name", str(k)], cleanup, name=f"worker-{k}") for k in range(workers)
        }
        site = Site(
            stack, store, url, local_key(stack), servers, {name: Part(name, child) for name, child in started.items()}, others
        )
        others["api"].child.wait_until(lambda: speaks_http(f"{url}/healthz"), START_LIMIT_S)
        try:
            yield site
        finally:
            for part in site.parts.values():
                part.child.stop()
            store.close()


def with_door(stack: Stack) -> FaultyStore:
    """Put a door before the stack's store."""
    name = "DRAGQUEUE_S3_ENDPOINT"
    host, _, port = stack.environment[name].removeprefix("http://").rpartition(":")
    store = FaultyStore(host, int(port))
    stack.environment[name] = f"http://{store.address}"
    return store
