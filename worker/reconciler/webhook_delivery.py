"""Delivery of events to webhooks: claim the deliveries that are due, send them, store how each attempt ended.

Any number of deliverers may run. A slow or dead receiver holds up nobody else: jobs/webhooks/scheduling.py says who is next.
"""

import logging
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Self

from jobs.database import Sessions
from jobs.settings import Settings
from jobs.webhooks.deliveries import DeliveryAttempt, DeliveryOutcome, claim, record_outcome
from jobs.webhooks.egress import EgressPolicy
from jobs.webhooks.scheduling import SLOW_S, DeliveryScheduler, Place
from jobs.webhooks.signing import encode_event, sign
from worker.reconciler.webhook_sender import WebhookSender
from worker.retry import SERVER_UNAVAILABLE, retry_while_unavailable

POLL_INTERVAL_S = 1.0
RECORD_LIMIT_S = 30.0  # how long an outcome waits for a database that is away
HEADERS = {"Content-Type": "application/json", "User-Agent": f"Dragqueue/{version('dragqueue')}"}
logger = logging.getLogger(__name__)


class WebhookDeliverer:
    """The loop that starts attempts, each in a thread of its own."""

    def __init__(self, sessions: Sessions, sender: WebhookSender, scheduler: DeliveryScheduler, delay_scale: float) -> None:
        self.sessions = sessions
        self.sender = sender
        self.scheduler = scheduler
        self.delay_scale = delay_scale
        self.lease = timedelta(seconds=2 * sender.timeout_s + RECORD_LIMIT_S)
        self.in_flight: dict[DeliveryAttempt, float] = {}  # since when, by time.monotonic()
        self.changed = threading.Condition()  # guards in_flight
        self.freed = threading.Event()  # set when an attempt has ended since the last poll

    @classmethod
    def from_settings(cls, sessions: Sessions, settings: Settings) -> Self:
        """Make a deliverer as the settings say."""
        sender = WebhookSender(policy=EgressPolicy.from_settings(settings), timeout_s=settings.webhook_timeout_s)
        return cls(sessions, sender, DeliveryScheduler(settings.webhook_concurrency), settings.webhook_rest_scale)

    def run(self, stop: threading.Event) -> None:
        """Deliver until stopped, and then wait for the attempts in flight."""
        while not stop.is_set():
            self.freed.clear()
            began = time.monotonic()
            try:
                self.start_due()
            except SERVER_UNAVAILABLE as error:
                logger.warning("deliveries wait: %s", error)
            except Exception:
                logger.exception("deliveries failed; they go on")
            stop.wait(
                min(time.monotonic() - began, POLL_INTERVAL_S)
            )  # where thousands wait, claims take half of the time at most
            self.freed.wait(POLL_INTERVAL_S)
        self.wait()

    def start_due(self) -> int:
        """Start attempts of due deliveries while there are places; return how many. Raises OperationalError."""
        taken = self.places()
        if len(taken) >= self.scheduler.capacity:
            return 0
        with self.sessions.begin() as session:
            attempts = claim(session, lambda waiting: self.scheduler.choose(waiting, taken), self.lease)
        for attempt in attempts:
            self.start(attempt)
        return len(attempts)

    def places(self) -> list[Place]:
        """Return the places that are taken."""
        slow_before = time.monotonic() - SLOW_S
        with self.changed:
            return [replace(attempt.place, lasts=began < slow_before) for attempt, began in self.in_flight.items()]

    def start(self, attempt: DeliveryAttempt) -> None:
        """Start an attempt. Without a thread for it, it is due again when its lease has run out."""
        with self.changed:
            self.in_flight[attempt] = time.monotonic()
        try:
            threading.Thread(target=self.deliver, args=(attempt,), name=f"delivery {attempt.id}", daemon=True).start()
        except RuntimeError as error:
            logger.error("delivery %s waits: %s", attempt.id, error)
            self.end(attempt)

    def end(self, attempt: DeliveryAttempt) -> None:
        """Free the place of an attempt."""
        with self.changed:
            self.in_flight.pop(attempt, None)
            self.changed.notify_all()
        self.freed.set()

    def wait(self) -> None:
        """Wait until no attempt is in flight."""
        with self.changed:
            self.changed.wait_for(lambda: not self.in_flight)

    def deliver(self, attempt: DeliveryAttempt) -> None:
        """Send one delivery and store the outcome. Without a stored outcome it is due again when the lease has run out."""
        try:
            outcome = self.send_or_fail(attempt)
            retry_while_unavailable(lambda: self.record_outcome(attempt, outcome), RECORD_LIMIT_S)
        except Exception:
            logger.exception("the outcome of delivery %s was not stored", attempt.id)
        finally:
            self.end(attempt)

    def send_or_fail(self, attempt: DeliveryAttempt) -> DeliveryOutcome:
        """Send one delivery. A defect of ours is an outcome too, or the delivery would be sent for ever."""
        try:
            return self.send(attempt)
        except Exception as error:
            logger.exception("delivery %s could not be sent", attempt.id)
            return DeliveryOutcome(error=type(error).__name__)

    def send(self, attempt: DeliveryAttempt) -> DeliveryOutcome:
        """Sign and send one delivery, unless its webhook is disabled."""
        if attempt.disabled:
            return DeliveryOutcome(error="the webhook was disabled")
        body = encode_event(attempt.type, attempt.created_at, attempt.data)
        headers = sign(attempt.id, attempt.secrets, body, datetime.now(UTC))
        began = time.monotonic()
        outcome = self.sender.post(attempt.url, headers | HEADERS, body)
        return replace(outcome, took_s=time.monotonic() - began)

    def record_outcome(self, attempt: DeliveryAttempt, outcome: DeliveryOutcome) -> None:
        """Store how an attempt ended."""
        with self.sessions.begin() as session:
            record_outcome(session, attempt, outcome, self.delay_scale)
