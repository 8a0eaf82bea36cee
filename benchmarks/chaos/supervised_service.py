"""The whole service on this machine under a supervisor that restarts what ends, as an init system would."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.chaos.faulty_store import FaultyStore, Mode
from embedded.keys import local_key
from embedded.processes import Child
from embedded.servers import free_port, speaks_http
from embedded.service import START_LIMIT_S, prepare, start_part
from embedded.stack import Stack, local_stack

RESTART_DELAY_S = 0.3
QUICK = {
    "LEASE_S": "2", "BEAT_S": "0.4", "SWEEP_S": "0.5", "PROGRESS_INTERVAL_S": "0.1", "THREADS": "1", "DRAIN_GRACE_S": "0.3",
    "RETRY_DELAY_S": "0.2", "RETRY_DELAY_LIMIT_S": "1", "CHECKPOINT_S": "0.5", "TUNING_CHECKPOINT_S": "0.5",
    "PATIENCE_S": "10", "MAX_ATTEMPTS": "20", "TIDY_AFTER_S": "2", "LOAD_LIMIT_S": "30",
}  # fmt: skip


@dataclass
class SupervisedProcess:
    """A process that is kept running."""

    name: str
    child: Child
    ended_at: float | None = None  # time.monotonic() when the supervisor found it ended
    stopped_until: float | None = None  # time.monotonic() until which SIGSTOP holds it

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process and everything it started."""
        os.killpg(self.child.process.pid, number)

    def pause(self, seconds: float) -> None:
        """Stop the process by a signal until the supervisor continues it."""
        self.kill(signal.SIGSTOP)
        self.stopped_until = time.monotonic() + seconds

    def is_up(self) -> bool:
        """Return whether the process runs and is not stopped."""
        return self.ended_at is None and self.stopped_until is None

    def child_pid(self) -> int | None:
        """Return the process id of a worker's computing child; None while there is none."""
        try:
            children = psutil.Process(self.child.process.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0].pid if children else None


@dataclass
class SupervisedService:
    """Servers, workers and the other processes, restarted when they end."""

    stack: Stack
    store: FaultyStore
    url: str
    key: str
    servers: dict[str, SupervisedProcess]
    workers: dict[str, SupervisedProcess]
    others: dict[str, SupervisedProcess]  # API and reconcilers
    store_broken_until: float | None = None  # time.monotonic()
    processes: dict[str, SupervisedProcess] = field(init=False)

    def __post_init__(self) -> None:
        self.processes = self.servers | self.workers | self.others

    def supervise(self) -> None:
        """Restart what has ended, continue what was stopped, mend the store, each when it is due; call it all the time."""
        now = time.monotonic()
        for process in self.processes.values():
            if process.stopped_until is not None and now >= process.stopped_until:
                process.kill(signal.SIGCONT)
                process.stopped_until = None
            if process.ended_at is None and process.child.process.poll() is not None:
                process.ended_at = now
            if process.ended_at is not None and now - process.ended_at >= RESTART_DELAY_S:
                process.child, process.ended_at = process.child.start_again(), None
        if self.store_broken_until is not None and now >= self.store_broken_until:
            self.store.set_mode("open")
            self.store_broken_until = None

    def servers_up(self) -> bool:
        """Return whether all servers run and the store answers."""
        return self.store_broken_until is None and all(process.is_up() for process in self.servers.values())

    def break_store(self, mode: Mode, seconds: float) -> None:
        """Let the store fail or hang until the supervisor mends it."""
        self.store.set_mode(mode)
        self.store_broken_until = time.monotonic() + seconds

    def mend(self) -> None:
        """Continue every stopped process and mend the store at once."""
        for process in self.processes.values():
            process.stopped_until = process.stopped_until and 0.0
        self.store_broken_until = self.store_broken_until and 0.0
        self.supervise()

    def stop(self) -> None:
        """End the service, not its servers."""
        self.mend()
        for process in (self.workers | self.others).values():
            process.child.stop()


@contextmanager
def running_service(state: Path, workers: int, slots: int) -> Iterator[SupervisedService]:
    """Run the service with short intervals, and stop it afterwards.

    Args:
        state: folder for the servers' data, which must survive their being killed.
        slots: of each worker; one with several computes with two threads, so that it has two batchers.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DRAGQUEUE_")}
    environment |= {f"DRAGQUEUE_{name}": value for name, value in QUICK.items()}
    if slots > 1:
        environment |= {"DRAGQUEUE_SLOTS": str(slots), "DRAGQUEUE_THREADS": "2"}
    with local_stack(state, environment) as stack, ExitStack() as cleanup:
        names = ("postgres", "valkey", "store")
        servers = {name: SupervisedProcess(name, child) for name, child in zip(names, stack.children, strict=True)}
        store = insert_faulty_store(stack)
        prepare(stack.settings())
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        others = {"api": SupervisedProcess("api", start_part(stack, "api", ["--port", str(port)], cleanup))}
        for k in range(2):
            name = f"reconciler-{k}"
            others[name] = SupervisedProcess(name, start_part(stack, "reconciler", [], cleanup, name=name))
        workers_by_name = {}
        for k in range(workers):
            name = f"worker-{k}"
            child = start_part(stack, "worker", ["--name", str(k)], cleanup, name=name)
            workers_by_name[name] = SupervisedProcess(name, child)
        service = SupervisedService(stack, store, url, local_key(stack), servers, workers_by_name, others)
        others["api"].child.wait_until(lambda: speaks_http(f"{url}/healthz"), START_LIMIT_S)
        try:
            yield service
        finally:
            for process in service.processes.values():
                process.child.stop()
            store.close()


def insert_faulty_store(stack: Stack) -> FaultyStore:
    """Put a proxy that can fail before the stack's store."""
    name = "DRAGQUEUE_S3_ENDPOINT"
    host, _, port = stack.environment[name].removeprefix("http://").rpartition(":")
    store = FaultyStore(host, int(port))
    stack.environment[name] = f"http://{store.address}"
    return store
