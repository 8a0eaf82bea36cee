"""Tells webhooks what happened: claims deliveries that are due, posts them, writes down how it went.

Any number of deliverers may run. A receiver that is dead holds up nobody else: of each webhook few are sent at once, and those
that fail have but a part of the room.
"""

import logging
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Self

from jobs.database import Sessions
from jobs.settings import Settings
from jobs.webhooks.deliveries import DeliveryCapacity, Outcome, Try, claim, settle
from jobs.webhooks.signing import body_of, signed_headers
from worker.reconciler.webhook_sender import WebhookSender
from worker.retry import SERVER_UNAVAILABLE, retry_while_unavailable

ROOM = 8  # deliveries sent at once
ROOM_FOR_FAILING = ROOM // 2
LOOK_EVERY_S = 1.0
SETTLING_S = 30.0  # that a database that is away is waited for, with an outcome in hand
HEADERS = {"Content-Type": "application/json", "User-Agent": f"Dragqueue/{version('dragqueue')}"}
logger = logging.getLogger(__name__)


class Deliverer:
    def __init__(self, sessions: Sessions, poster: WebhookSender, rest_scale: float) -> None:
        self.sessions = sessions
        self.poster = poster
        self.rest_scale = rest_scale
        self.lease = timedelta(seconds=2 * poster.timeout_s + SETTLING_S)
        self.under_way: set[Try] = set()
        self.changed = threading.Condition()  # of under_way
        self.freed = threading.Event()  # there is room since the last look

    @classmethod
    def from_settings(cls, sessions: Sessions, settings: Settings) -> Self:
        poster = WebhookSender(destinations=settings.destinations, timeout_s=settings.webhook_timeout_s)
        return cls(sessions, poster, settings.webhook_rest_scale)

    def run(self, stop: threading.Event) -> None:
        """Deliver until stopped, and then wait for what is under way."""
        while not stop.is_set():
            self.freed.clear()
            try:
                self.look()
            except SERVER_UNAVAILABLE as error:
                logger.warning("deliveries wait: %s", error)
            except Exception:
                logger.exception("deliveries failed; they go on")
            self.freed.wait(LOOK_EVERY_S)
        self.finish()

    def look(self) -> int:
        """Begin what is due and has room; how many. Raises OperationalError."""
        room = self.room()
        if room.room <= 0:
            return 0
        with self.sessions.begin() as session:
            tries = claim(session, room, self.lease)
        for this in tries:
            with self.changed:
                self.under_way.add(this)
            threading.Thread(target=self.carry, args=(this,), name=f"delivery {this.id}", daemon=True).start()
        return len(tries)

    def room(self) -> DeliveryCapacity:
        with self.changed:
            under_way = list(self.under_way)
        failing = sum(this.failing for this in under_way)
        return DeliveryCapacity(
            room=ROOM - len(under_way),
            room_for_failing=max(0, ROOM_FOR_FAILING - failing),
            under_way=Counter(this.webhook for this in under_way),
        )

    def finish(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.under_way)

    def carry(self, this: Try) -> None:
        """Send one and settle it. What cannot be settled is due again when its lease has run out."""
        try:
            outcome = self.try_to_send(this)
            retry_while_unavailable(lambda: self.settle(this, outcome), SETTLING_S)
        except Exception:
            logger.exception("delivery %s was not settled", this.id)
        finally:
            with self.changed:
                self.under_way.discard(this)
                self.changed.notify_all()
            self.freed.set()

    def try_to_send(self, this: Try) -> Outcome:
        """A defect of ours is an outcome too: what is never settled would be sent for ever."""
        try:
            return self.send(this)
        except Exception as error:
            logger.exception("delivery %s could not be sent", this.id)
            return Outcome(error=type(error).__name__)

    def send(self, this: Try) -> Outcome:
        if this.disabled:
            return Outcome(error="the webhook was disabled")
        body = body_of(this.type, this.created_at, this.data)
        headers = signed_headers(this.id, this.secrets, body, datetime.now(UTC))
        return self.poster.post(this.url, headers | HEADERS, body)

    def settle(self, this: Try, outcome: Outcome) -> None:
        with self.sessions.begin() as session:
            settle(session, this, outcome, self.rest_scale)
