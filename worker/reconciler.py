"""Repairs what nobody reports: workers that went silent, messages that were lost, jobs nobody started in time.

Any number of reconcilers may run; an advisory lock lets one sweep at a time.
"""

import logging
import signal
import threading
from dataclasses import dataclass

from redis import RedisError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from jobs.database import Sessions, make_sessions
from jobs.queue import Queue
from jobs.repository import JobRepository
from jobs.settings import Settings

LOCK = 7_346_813  # the advisory lock of sweeps
MOST_MESSAGES = 1000
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What one look changed."""

    requeued: int = 0  # leases that had run out
    failed: int = 0  # of those, without an attempt left
    expired: int = 0  # start_before had passed
    messages: int = 0  # sent for jobs that wait


class Reconciler:
    def __init__(self, sessions: Sessions, queue: Queue, max_attempts: int) -> None:
        self.sessions = sessions
        self.queue = queue
        self.max_attempts = max_attempts

    def sweep(self) -> Sweep:
        """Look once; nothing happens while another reconciler is at it."""
        with self.sessions.begin() as session:
            if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": LOCK}):
                return Sweep()
            jobs = JobRepository(session)
            requeued, failed = jobs.requeue_expired_leases(self.max_attempts)
            expired = jobs.expire()
            queued = jobs.queued(limit=MOST_MESSAGES)
        return Sweep(requeued=requeued, failed=failed, expired=expired, messages=self.wake(queued))

    def wake(self, queued: int) -> int:
        """Send as many messages as jobs wait without one."""
        missing = max(0, queued - self.queue.length())
        for _ in range(missing):
            self.queue.wake()
        return missing


def main(settings: Settings) -> None:
    """Sweep until SIGTERM; a server that is away is waited for."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    reconciler = Reconciler(make_sessions(settings.database_url), Queue(settings.redis_url), settings.max_attempts)
    while not stop.wait(settings.sweep_s):
        try:
            sweep = reconciler.sweep()
        except (OperationalError, RedisError) as error:
            logger.warning("no sweep: %s", error)
            continue
        if sweep != Sweep():
            logger.info("%s", sweep)
