"""The faults that are injected into a service."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import psutil
from redis import RedisError

from benchmarks.chaos.faulty_store import Mode
from benchmarks.chaos.supervised_service import SupervisedProcess, SupervisedService
from jobs.queue.broker import Broker

STOPPED_S = (2.5, 5.0)  # longer than a lease
BROKEN_S = (0.5, 4.0)  # of the store
RunningJobs = dict[UUID, tuple[int, str]]  # job: its attempt and worker
AffectedWorkers = frozenset[int] | None  # process ids; None: all
ALL_WORKERS = None
NO_WORKER: frozenset[int] = frozenset()


class FaultImpossible(Exception):
    """The fault cannot be injected now."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that was injected."""

    kind: str
    at: float  # time.time()
    hit: dict[UUID, int]  # jobs that ran where it happened, and which attempt of each
    direct: bool  # whether it was a fault of the worker itself


class FaultInjector:
    """Injects every kind of fault, in a shuffled order, before it begins anew."""

    def __init__(self, service: SupervisedService, seed: int) -> None:
        self.service = service
        self.random = random.Random(seed)
        self.broker = Broker(service.stack.settings().redis_url)
        self.kinds: dict[str, Callable[[], AffectedWorkers]] = {
            "worker killed": lambda: self.kill_worker(),
            "worker's child killed": self.kill_child,
            "worker stopped for longer than a lease": self.stop_worker,
            "worker asked to end": self.terminate_worker,
            "API killed": lambda: self.kill_other("api"),
            "reconciler killed": lambda: self.kill_other(f"reconciler-{self.random.randrange(2)}"),
            "FLUSHALL": self.flush_broker,
            "Valkey killed": lambda: self.kill_server("valkey"),
            "PostgreSQL killed": lambda: self.kill_server("postgres"),
            "store killed": lambda: self.kill_server("store"),
            "store answers 500": lambda: self.break_store("failing"),
            "store hangs": lambda: self.break_store("hanging"),
        }
        self.pending: list[str] = []

    def inject(self, running: RunningJobs) -> Fault | None:
        """Inject the next fault while these jobs run; return None if that is impossible just now."""
        self.pending = self.pending or self.random.sample(list(self.kinds), len(self.kinds))
        kind, at = self.pending[-1], time.time()
        try:
            workers = self.kinds[kind]()
        except (FaultImpossible, ProcessLookupError, psutil.NoSuchProcess, RedisError):
            return None
        self.pending.pop()
        hit = {job: attempt for job, (attempt, name) in running.items() if workers is None or pid_of(name) in workers}
        return Fault(kind=kind, at=at, hit=hit, direct=bool(workers))

    def choose_worker(self) -> tuple[SupervisedProcess, int]:
        """Choose a worker that runs; return it and the process that computes for it."""
        found = [(worker, pid) for worker in self.service.workers.values() if worker.is_up() and (pid := worker.child_pid())]
        if not found:
            raise FaultImpossible
        return self.random.choice(found)

    def kill_worker(self) -> AffectedWorkers:
        """Kill a worker with its child."""
        worker, pid = self.choose_worker()
        worker.kill()
        return frozenset({pid})

    def kill_child(self) -> AffectedWorkers:
        """Kill a worker's child alone."""
        _, pid = self.choose_worker()
        psutil.Process(pid).kill()
        return frozenset({pid})

    def stop_worker(self) -> AffectedWorkers:
        """Stop a worker by a signal, for longer than a lease."""
        worker, pid = self.choose_worker()
        worker.pause(self.random.uniform(*STOPPED_S))
        return frozenset({pid})

    def terminate_worker(self) -> AffectedWorkers:
        """Ask a worker to end, as `kill` does."""
        worker, pid = self.choose_worker()
        worker.child.process.terminate()
        return frozenset({pid})

    def kill_other(self, name: str) -> AffectedWorkers:
        """Kill the API or a reconciler."""
        process = self.service.others[name]
        if not process.is_up():
            raise FaultImpossible
        process.kill()
        return NO_WORKER

    def kill_server(self, name: str) -> AffectedWorkers:
        """Kill a server."""
        if not self.service.servers_up():
            raise FaultImpossible
        self.service.servers[name].kill()
        return ALL_WORKERS

    def flush_broker(self) -> AffectedWorkers:
        """Delete every message."""
        self.broker.redis.flushall()
        return NO_WORKER

    def break_store(self, mode: Mode) -> AffectedWorkers:
        """Let the store fail or hang for a while."""
        if not self.service.servers_up():
            raise FaultImpossible
        self.service.break_store(mode, self.random.uniform(*BROKEN_S))
        return ALL_WORKERS


def pid_of(worker: str) -> int:
    """Return the process id in a worker's name, host:pid."""
    return int(worker.rpartition(":")[2])
