"""Whether the servers behind the API answer: checked by one request for all that ask, in threads that no route needs."""

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Callable

from anyio import CapacityLimiter, to_thread
from sqlalchemy import text

from jobs.database import Sessions
from jobs.queue.broker import Broker
from jobs.storage.objects import Storage

LIMIT_S = 1.0  # after which a server that has not answered does not
VALID_S = 1.0  # how long a verdict is used
WRITE_VALID_S = 30.0  # of the check that writes
MIN_FREE_BYTES = 100 * 10**6  # of the disk for temporary files
PROBE_KEY = "health/probe"  # an object of one byte
logger = logging.getLogger(__name__)


class ServerCheck:
    """A check of one server that runs at most once at a time."""

    def __init__(self, name: str, check: Callable[[], None], valid_s: float = VALID_S) -> None:
        """Take a check.

        Args:
            name: of the server, for everybody to see; what is wrong with it stays in the log.
            check: raises an error when the server cannot be used.
        """
        self.name = name
        self.check = check
        self.valid_s = valid_s
        self.thread = CapacityLimiter(1)
        self.running: asyncio.Task[bool] | None = None
        self.began = 0.0

    async def is_usable(self) -> bool:
        """Return the verdict, a new one where the last is too old; a check that takes too long is a bad one."""
        now = time.monotonic()
        if self.running is None or (self.running.done() and now - self.began > self.valid_for_s()):
            self.running, self.began = asyncio.create_task(self.run()), now
        await asyncio.wait({self.running}, timeout=max(0.0, self.began + LIMIT_S - now))
        return self.running.done() and self.running.result()

    def valid_for_s(self) -> float:
        """Return how long the last verdict is used: a bad one shortly."""
        return self.valid_s if self.running is not None and self.running.result() else VALID_S

    async def run(self) -> bool:
        """Run the check in a thread of its own."""
        try:
            await to_thread.run_sync(self.check, limiter=self.thread)
        except Exception as error:
            logger.warning("not ready: %s: %s", self.name, str(error).partition("\n")[0])
            return False
        return True


def check_disk() -> None:
    """Raise OSError when there is too little room for the files of bodies and pictures."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < MIN_FREE_BYTES:
        raise OSError(f"{tempfile.gettempdir()} has {free / 1e6:.0f} MB left, {MIN_FREE_BYTES / 1e6:.0f} MB are needed")


class Readiness:
    """The checks of all servers."""

    def __init__(self, sessions: Sessions, broker: Broker, storage: Storage) -> None:
        def check_database() -> None:
            with sessions() as session:
                session.execute(text("SELECT 1 FROM jobs LIMIT 1"))

        def check_writing() -> None:
            storage.put(PROBE_KEY, b"1", "application/octet-stream")

        self.checks = [
            ServerCheck("database", check_database),
            ServerCheck("broker", broker.check),
            ServerCheck("store", storage.check),
            ServerCheck("store: it takes no objects, it may be full", check_writing, WRITE_VALID_S),
            ServerCheck("disk", check_disk),
        ]

    async def problems(self) -> list[str]:
        """Return the names of the servers that cannot be used now."""
        usable = await asyncio.gather(*(check.is_usable() for check in self.checks))
        names = [check.name for check, is_usable in zip(self.checks, usable, strict=True) if not is_usable]
        return [name for name in names if name.partition(":")[0] == name or name.partition(":")[0] not in names]
