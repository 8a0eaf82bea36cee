"""Repairs what nobody reports: workers that went silent, messages that were lost, jobs nobody started in time.

Any number of reconcilers may run; an advisory lock lets one sweep at a time.
"""

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from redis import RedisError
from sqlalchemy import text

from jobs.database import Sessions, make_sessions
from jobs.queue.broker import Broker
from jobs.queue.claims import claimable
from jobs.queue.idempotency import forget_old
from jobs.queue.repository import JobRepository
from jobs.queue.retry_policy import RetryPolicy
from jobs.queue.workers import forget_silent
from jobs.settings import Settings
from jobs.storage.objects import OF_A_REQUEST, Storage
from jobs.webhooks import deliveries
from worker.reconciler.c2pa import C2paSigner
from worker.reconciler.purge import Purge
from worker.reconciler.signed_copies import SignedCopies
from worker.reconciler.webhook_delivery import Deliverer
from worker.retry import SERVER_UNAVAILABLE

LOCK = 7_346_813  # the advisory lock of sweeps
MOST_MESSAGES = 1000
FORGET_WORKERS_S = 86_400.0  # after that long without a word and without a job
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What one look changed."""

    requeued: int = 0  # leases that had run out
    failed: int = 0  # of those, without an attempt left
    expired: int = 0  # start_before had passed
    messages: int = 0  # sent for jobs that wait


class Reconciler:
    def __init__(self, sessions: Sessions, queue: Broker, retries: RetryPolicy) -> None:
        self.sessions = sessions
        self.queue = queue
        self.retries = retries

    def sweep(self) -> Sweep:
        """Look once; nothing happens while another reconciler is at it."""
        with self.sessions.begin() as session:
            if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": LOCK}):
                return Sweep()
            jobs = JobRepository(session)
            requeued, failed = jobs.requeue_expired_leases(self.retries)
            expired = jobs.expire()
            forget_old(session)
            forget_silent(session, timedelta(seconds=FORGET_WORKERS_S))
            deliveries.forget_old(session)
            waiting = claimable(session, MOST_MESSAGES)
        return Sweep(requeued=requeued, failed=failed, expired=expired, messages=self.wake(waiting))

    def wake(self, waiting: dict[str, int]) -> int:
        """Send each pool as many messages as jobs wait there without one."""
        sent = 0
        for pool, jobs in waiting.items():
            missing = max(0, jobs - self.queue.length(pool))
            for _ in range(missing):
                self.queue.wake(pool)
            sent += missing
        return sent


def main(settings: Settings) -> None:
    """Sweep until SIGTERM; a server that is away is waited for. Purge, deliveries and signing go on beside it.

    Raises C2paSettingsInvalid.
    """
    credentials = C2paSigner.from_settings(settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sessions = make_sessions(settings.database_url)
    reconciler = Reconciler(sessions, Broker(settings.redis_url), settings.retries)
    purge = Purge(sessions, Storage.from_settings(settings), settings.tidy_after_s, settings.upload_retain_s)
    repeat = partial(until_stopped, stop=stop, every_s=settings.sweep_s)
    threading.Thread(target=repeat, args=(purge.purge,), name="purge", daemon=True).start()
    if credentials is not None:
        signing = SignedCopies(sessions, Storage.from_settings(settings, OF_A_REQUEST), credentials)
        threading.Thread(target=repeat, args=(signing.sign,), name="signing", daemon=True).start()
    deliverer = Deliverer.from_settings(sessions, settings)
    delivery = threading.Thread(target=deliverer.run, args=(stop,), name="delivery", daemon=True)
    delivery.start()
    repeat(reconciler.sweep)
    delivery.join(settings.drain_grace_s)  # what is cut off here is delivered again


def until_stopped(look: Callable[[], object], stop: threading.Event, every_s: float) -> None:
    """Look again and again, and log what changed."""
    while not stop.wait(every_s):
        try:
            changed = look()
        except (*SERVER_UNAVAILABLE, RedisError) as error:
            logger.warning("%s waits: %s", look.__name__, error)
            continue
        except Exception:
            logger.exception("%s failed; it goes on", look.__name__)
            continue
        if changed != type(changed)():
            logger.info("%s", changed)
