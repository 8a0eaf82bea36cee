"""What may happen to a service."""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import psutil
from redis import RedisError

from benchmarks.chaos.faulty_store import Mode
from benchmarks.chaos.site import Part, Site
from jobs.queue.broker import Broker

SLEEP_S = (2.5, 5.0)  # longer than a lease
SHUT_S = (0.5, 4.0)
Running = dict[UUID, tuple[int, str]]  # job: its attempt and worker
EVERYBODY = None
NOBODY: frozenset[int] = frozenset()
Hit = frozenset[int] | None  # process ids of the workers that it meets


class NothingThere(Exception):
    """The fault cannot happen now."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One that happened."""

    kind: str
    at: float  # time.time()
    hit: dict[UUID, int]  # jobs that ran where it happened, and which attempt of each
    direct: bool  # whether it met the worker itself


class Faults:
    """Each kind in turn, in a shuffled order."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.random = random.Random(seed)
        self.queue = Broker(site.stack.settings().redis_url)
        self.kinds: dict[str, Callable[[], Hit]] = {
            "worker killed": lambda: self.kill_worker(),
            "worker's child killed": self.kill_child,
            "worker stopped for longer than a lease": self.put_to_sleep,
            "worker asked to end": self.ask_to_end,
            "API killed": lambda: self.kill_other("api"),
            "reconciler killed": lambda: self.kill_other(f"reconciler-{self.random.randrange(2)}"),
            "FLUSHALL": self.flush,
            "Valkey killed": lambda: self.kill_server("valkey"),
            "PostgreSQL killed": lambda: self.kill_server("postgres"),
            "store killed": lambda: self.kill_server("store"),
            "store answers 500": lambda: self.shut("failing"),
            "store hangs": lambda: self.shut("hanging"),
        }
        self.bag: list[str] = []

    def strike(self, running: Running) -> Fault | None:
        """The next fault, among jobs that run; None when it cannot happen just now."""
        self.bag = self.bag or self.random.sample(list(self.kinds), len(self.kinds))
        kind, at = self.bag[-1], time.time()
        try:
            hit = self.kinds[kind]()
        except (NothingThere, ProcessLookupError, psutil.NoSuchProcess, RedisError):
            return None
        self.bag.pop()
        met = {job: attempt for job, (attempt, worker) in running.items() if hit is None or pid_of(worker) in hit}
        return Fault(kind=kind, at=at, hit=met, direct=bool(hit))

    def some_worker(self) -> tuple[Part, int]:
        """One that runs, and the process that computes for it."""
        found = [(part, pid) for part in self.site.workers.values() if part.up() and (pid := part.computing())]
        if not found:
            raise NothingThere
        return self.random.choice(found)

    def kill_worker(self) -> Hit:
        part, pid = self.some_worker()
        part.kill()
        return frozenset({pid})

    def kill_child(self) -> Hit:
        _, pid = self.some_worker()
        psutil.Process(pid).kill()
        return frozenset({pid})

    def put_to_sleep(self) -> Hit:
        part, pid = self.some_worker()
        part.kill(signal.SIGSTOP)
        part.asleep_until = time.monotonic() + self.random.uniform(*SLEEP_S)
        return frozenset({pid})

    def ask_to_end(self) -> Hit:
        part, pid = self.some_worker()
        part.child.process.terminate()
        return frozenset({pid})

    def kill_other(self, name: str) -> Hit:
        part = self.site.others[name]
        if not part.up():
            raise NothingThere
        part.kill()
        return NOBODY

    def kill_server(self, name: str) -> Hit:
        if not self.site.servers_up():
            raise NothingThere
        self.site.servers[name].kill()
        return EVERYBODY

    def flush(self) -> Hit:
        self.queue.redis.flushall()
        return NOBODY

    def shut(self, mode: Mode) -> Hit:
        if not self.site.servers_up():
            raise NothingThere
        self.site.store.turn(mode)
        self.site.store_mode_until = time.monotonic() + self.random.uniform(*SHUT_S)
        return EVERYBODY


def pid_of(worker: str) -> int:
    """Of a worker's name, host:pid."""
    return int(worker.rpartition(":")[2])
