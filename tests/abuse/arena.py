"""The whole service with an attacker beside a victim: one outcome for each attack."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from embedded.processes import Child
from embedded.servers import speaks_http
from embedded.service import running_service
from embedded.stack import Stack, local_stack
from jobs.database import Sessions, make_sessions
from jobs.models.manifest import ModelManifest
from jobs.tenants import keys
from jobs.tenants.keys import Scope
from tests.abuse.attack import Attack
from tests.abuse.attacker import Orders, Report
from tests.abuse.memory import Memory, used_cpu_s, watching
from tests.abuse.victim import Observation, Victim, receiving
from tests.manifests import write_tiny_checkpoints

ATTACKER, VICTIM = "attacker", "victim"
KEYS = 20  # of the attacker, new for each attack
PREPARE_LIMIT_S = 90.0
AFTERMATH_S = 1.0  # for which the victim is watched after an attack
SETTLE_S = 15.0  # for the service to be done with what an attacker left
BUSY = 0.5  # of a core
MEMORY_LIMIT_MB = 600.0
WORKER_NICE = "10"  # it shares the cores with the API here only
SETTINGS = {"THREADS": "1", "WEBHOOK_ALLOW_HTTP": "true", "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}


@dataclass(frozen=True)
class Outcome:
    """What an attack has done."""

    attack: str
    line: str
    observations: list[Observation]
    late_s: float  # by how much the victim's client was late at most
    memory: Memory
    report: Report
    tracebacks: int  # in the API's log
    exit_code: int | None  # of an API that ended

    def failures(self) -> list[str]:
        """Return what went wrong for the victim."""
        return [f"{seen.kind} at {seen.at_s:.1f} s: {seen.failure}" for seen in self.observations if seen.failure]

    def defects(self) -> list[str]:
        """Return everything that must not be."""
        return [
            *self.failures(),
            *([f"the API took {self.memory.api_mb:.0f} MB"] if self.memory.api_mb > MEMORY_LIMIT_MB else []),
            *([f"the API's log has {self.tracebacks} tracebacks"] if self.tracebacks else []),
            *([f"{self.report.answers['500']} answers were 500"] if "500" in self.report.answers else []),
            *([f"the API ended: {self.exit_code}"] if self.exit_code is not None else []),
            *([f"the attack itself broke: {self.report.trouble}"] if self.report.trouble else []),
        ]


@dataclass
class Arena:
    """A running service, and who meets there."""

    stack: Stack
    url: str
    sessions: Sessions
    seconds: float  # of an attack

    @property
    def api(self) -> Child:
        return self.process("api")

    def process(self, name: str) -> Child:
        """Return one of the stack's processes."""
        return next(child for child in self.stack.children if child.name == name)

    def make_key(self, tenant: str) -> str:
        with self.sessions.begin() as session:
            return keys.create(session, tenant, "abuse", [Scope.ADMIN])

    def run(self, attack: Attack) -> Outcome:
        """Let an attack happen beside the victim."""
        return asyncio.run(self.meet(attack))

    async def meet(self, attack: Attack) -> Outcome:
        pid, logged = self.api.process.pid, self.api.log.stat().st_size
        async with self.attacking(attack) as attacker, self.victim() as victim:
            with self.standing_still(attack.stops):
                async with watching(pid) as memory, victim.probing(attack.victim):
                    report = await attacker.strike()
                    await asyncio.sleep(AFTERMATH_S)
        log = self.api.log.read_bytes()[logged:]
        return Outcome(
            attack.name, attack.line, victim.observations, victim.late_s, memory, report,
            log.count(b"Traceback (most recent call last)"), self.api.process.poll(),
        )  # fmt: skip

    @asynccontextmanager
    async def attacking(self, attack: Attack) -> AsyncIterator["AttackerProcess"]:
        """Start the attacker's process; it is prepared when this yields."""
        address = urlsplit(self.url)
        tokens = [self.make_key(ATTACKER) for _ in range(KEYS)]
        orders = Orders(
            attack.name,
            str(address.hostname),
            address.port or 80,
            tokens,
            attack.connections,
            max(self.seconds, attack.at_least_s),
        )
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.abuse.attacker", stdin=pipe, stdout=pipe, limit=2**20, start_new_session=True
        )
        try:
            attacker = AttackerProcess(process, orders)
            await attacker.prepare()
            yield attacker
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]  # its pipes; the loop ends before they are collected

    @asynccontextmanager
    async def victim(self) -> AsyncIterator[Victim]:
        victim = Victim(self.url, self.make_key(VICTIM))
        async with receiving(victim) as receiver_url:
            await victim.prepare(receiver_url)
            yield victim
        await victim.close()

    @contextmanager
    def standing_still(self, server: str | None) -> Iterator[None]:
        """Stop a server's processes, as if its machine hung."""
        found = [] if server is None else family(self.process(server).process.pid)
        for process in found:
            process.suspend()
        try:
            yield
        finally:
            for process in found:
                process.resume()

    def settle(self, *, broken: bool) -> float | None:
        """Wait until the service is done with an attack; an API that the attack has broken is started anew.

        Returns:
            How long it went on; None when it was started anew.
        """
        begin = time.monotonic()
        while not broken and self.is_busy():
            broken = time.monotonic() > begin + SETTLE_S
        if broken:
            self.api.stop(limit_s=1)
            self.stack.restart("api")
            self.api.wait_until(lambda: speaks_http(f"{self.url}/healthz"), 60)
            return None
        return time.monotonic() - begin

    def is_busy(self, window_s: float = 0.2) -> bool:
        """Return whether the API computes, or does not answer."""
        before = used_cpu_s(self.api.process.pid)
        time.sleep(window_s)
        return used_cpu_s(self.api.process.pid) - before > BUSY * window_s or not speaks_http(f"{self.url}/healthz")


@dataclass(frozen=True)
class AttackerProcess:
    """The attacker's process, as the arena talks to it."""

    process: asyncio.subprocess.Process
    orders: Orders

    async def prepare(self) -> None:
        self.tell(json.dumps(asdict(self.orders)))
        async with asyncio.timeout(PREPARE_LIMIT_S):
            line = await self.read()
        assert line == "ready", f"{self.orders.attack}: its preparation failed"

    async def strike(self) -> Report:
        """Let it begin, and return what it has done."""
        self.tell("go")
        async with asyncio.timeout(self.orders.seconds + 30):
            line = await self.read()
        return Report(**json.loads(line))

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def read(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


@contextmanager
def open_arena(folder: Path, seconds: float) -> Iterator[Arena]:
    """Run the service with small models: tiny and slow, and two that no worker serves, whose jobs stay queued."""
    write_tiny_checkpoints(folder)
    tiny = ModelManifest.load(folder).get("tiny")
    for name in ("idle", "large"):
        ModelManifest(folder, {}).add(tiny.model_copy(update={"name": name, "pool": "idle"}))
    settings = SETTINGS | {"CHECKPOINTS": str(folder)}
    environment = dict(os.environ) | {f"DRAGQUEUE_{name}": value for name, value in settings.items()}
    with local_stack(environment=environment) as stack, running_service(stack) as service:
        sessions = make_sessions(stack.settings().database_url)
        try:
            arena = Arena(stack, service.url, sessions, seconds)
            lower_priority(arena.process("worker-0").process.pid)
            yield arena
        finally:
            sessions.kw["bind"].dispose()
            for child in reversed(stack.children):
                child.stop(limit_s=1)  # its data is temporary: nothing need be waited for


def lower_priority(pid: int) -> None:
    """Lower the priority of a process that has a session of its own, with all that it starts."""
    with suppress(OSError), open(f"/proc/{pid}/autogroup", "w") as autogroup:
        autogroup.write(WORKER_NICE)
    for process in family(pid):
        with suppress(psutil.Error):
            process.nice(int(WORKER_NICE))
