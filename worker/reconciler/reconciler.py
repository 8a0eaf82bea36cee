"""The reconciler: it repairs what no process reports, such as silent workers, lost messages and jobs that should have started.

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
from jobs.queue import attempts, idempotency, jobs
from jobs.queue.broker import Broker
from jobs.queue.claims import count_claimable
from jobs.queue.retry_policy import RetryPolicy
from jobs.queue.workers import delete_silent_workers
from jobs.settings import Settings
from jobs.storage.objects import REQUEST_TIMEOUTS, Storage
from jobs.webhooks import deliveries
from worker.reconciler.c2pa import C2paSigner
from worker.reconciler.purge import Purger
from worker.reconciler.signed_copies import ResultSigner
from worker.reconciler.webhook_delivery import WebhookDeliverer
from worker.retry import SERVER_UNAVAILABLE

SWEEP_LOCK = 7_346_813  # key of the advisory lock
MAX_MESSAGES = 1000  # sent by one sweep
SILENT_WORKER_S = 86_400.0  # after which a worker without a job is deleted
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What one sweep changed."""

    requeued: int = 0  # jobs whose lease had run out
    failed: int = 0  # jobs whose lease had run out and that had no attempt left
    expired: int = 0  # jobs whose start_before had passed
    messages: int = 0  # sent for queued jobs


class Reconciler:
    """The repairs of the queue itself."""

    def __init__(self, sessions: Sessions, broker: Broker, retries: RetryPolicy) -> None:
        self.sessions = sessions
        self.broker = broker
        self.retries = retries

    def sweep(self) -> SweepResult:
        """Repair once. Nothing happens while another reconciler sweeps."""
        with self.sessions.begin() as session:
            if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": SWEEP_LOCK}):
                return SweepResult()
            requeued, failed = attempts.requeue_expired_leases(session, self.retries)
            expired = jobs.expire(session)
            idempotency.forget_old(session)
            delete_silent_workers(session, timedelta(seconds=SILENT_WORKER_S))
            deliveries.delete_old(session)
            waiting = count_claimable(session, MAX_MESSAGES)
        return SweepResult(requeued=requeued, failed=failed, expired=expired, messages=self.send_wake_ups(waiting))

    def send_wake_ups(self, waiting: dict[str, int]) -> int:
        """Send each pool one message for every queued job without one; return how many."""
        sent = 0
        for pool, queued in waiting.items():
            missing = max(0, queued - self.broker.count_messages(pool))
            for _ in range(missing):
                self.broker.send_wake_up(pool)
            sent += missing
        return sent


def main(settings: Settings) -> None:
    """Sweep until SIGTERM, with purges, deliveries and signing in threads beside it. Servers that are away are waited for.

    Raises C2paSettingsInvalid.
    """
    signer = C2paSigner.from_settings(settings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sessions = make_sessions(settings.database_url)
    reconciler = Reconciler(sessions, Broker(settings.redis_url), RetryPolicy.from_settings(settings))
    purger = Purger(sessions, Storage.from_settings(settings), settings.tidy_after_s, settings.upload_retain_s)
    repeat = partial(run_periodically, stop=stop, every_s=settings.sweep_s)
    threading.Thread(target=repeat, args=(purger.purge,), name="purge", daemon=True).start()
    if signer is not None:
        signing = ResultSigner(sessions, Storage.from_settings(settings, REQUEST_TIMEOUTS), signer)
        threading.Thread(target=repeat, args=(signing.sign,), name="signing", daemon=True).start()
    deliverer = WebhookDeliverer.from_settings(sessions, settings)
    delivery = threading.Thread(target=deliverer.run, args=(stop,), name="delivery", daemon=True)
    delivery.start()
    repeat(reconciler.sweep)
    delivery.join(settings.drain_grace_s)  # attempts that are cut off here are made again


def run_periodically(action: Callable[[], object], stop: threading.Event, every_s: float) -> None:
    """Repeat an action until stopped, and log what it changed."""
    while not stop.wait(every_s):
        try:
            changed = action()
        except (*SERVER_UNAVAILABLE, RedisError) as error:
            logger.warning("%s waits: %s", action.__name__, error)
            continue
        except Exception:
            logger.exception("%s failed; it goes on", action.__name__)
            continue
        if changed != type(changed)():
            logger.info("%s", changed)
