"""Deliveries of events to webhooks: which are due, how each attempt ends, the log.

An attempt is claimed by moving next_at ahead. That is a lease: nothing is locked while HTTP runs, and the deliveries of a killed
process are due again when the lease has run out. Every event arrives at least once; receivers tell doubles apart by its id.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Integer, Uuid, delete, func, select, text, tuple_, update
from sqlalchemy.orm import Session
from sqlalchemy.sql import bindparam

from jobs.backoff import with_jitter
from jobs.errors import RateLimited, WebhookDisabled, WebhookNotFound
from jobs.tables import Delivery, Tenant, Webhook
from jobs.webhooks.scheduling import MAX_PER_WEBHOOK, SLOW_S, Place, WaitingWebhook, smooth_answer_s
from jobs.webhooks.subscriptions import disable

TEST_EVENT = "webhook.test"  # an event of no job
NO_JOB = UUID(int=0)
RETRY_DELAYS_S = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)  # before each attempt
MAX_RETRY_AFTER_S = 86_400.0  # that a receiver may ask for
DISABLED_AFTER = timedelta(days=5)  # without one delivery that arrived
LOG_RETENTION = timedelta(days=30)  # of ended deliveries
DELETE_CHUNK_ROWS = 5000
MANUAL_INTERVAL_S = 1.0  # between two tests or redeliveries of a tenant, on average
MAX_MANUAL_AT_ONCE = 60  # of them

# Webhooks with pending deliveries are found by skipping through the index of pending deliveries, so that a webhook with a million
# of them costs as much as any other. Of each no more deliveries are looked at than may be sent at once, and none is locked.
WAITING = text("""
WITH RECURSIVE waiting (webhook) AS (
    (SELECT webhook FROM deliveries WHERE state = 'pending' ORDER BY webhook LIMIT 1)
    UNION ALL
    SELECT next.webhook FROM waiting CROSS JOIN LATERAL (
        SELECT webhook FROM deliveries WHERE state = 'pending' AND webhook > waiting.webhook ORDER BY webhook LIMIT 1) AS next
)
SELECT webhooks.id, webhooks.tenant, first.due, first.since, webhooks.answer_s, webhooks.failing_since IS NOT NULL AS failing
FROM waiting JOIN webhooks ON webhooks.id = waiting.webhook CROSS JOIN LATERAL (
    SELECT count(*) AS due, min(next_at) AS since FROM (
        SELECT next_at FROM deliveries WHERE webhook = waiting.webhook AND state = 'pending' AND next_at <= now()
        ORDER BY next_at LIMIT :most) AS found) AS first
WHERE first.due > 0
""").bindparams(most=max(MAX_PER_WEBHOOK.values()))

# The chosen webhooks' deliveries, the longest due first. What another deliverer has claimed in the meantime is left to it.
CLAIM = text("""
WITH picked AS MATERIALIZED (
    SELECT found.id FROM unnest(:webhooks, :numbers) AS chosen (webhook, number) CROSS JOIN LATERAL (
        SELECT id FROM deliveries WHERE webhook = chosen.webhook AND state = 'pending' AND next_at <= now()
        ORDER BY next_at LIMIT chosen.number FOR UPDATE SKIP LOCKED) AS found
)
UPDATE deliveries SET tries = tries + 1, next_at = now() + :lease
FROM picked, webhooks
WHERE deliveries.id = picked.id AND webhooks.id = deliveries.webhook
RETURNING deliveries.id, deliveries.webhook, deliveries.type, deliveries.data, deliveries.created_at, deliveries.tries,
    deliveries.next_at AS lease_until, webhooks.url, webhooks.secrets, webhooks.disabled_at IS NOT NULL AS disabled
""").bindparams(bindparam("webhooks", type_=ARRAY(Uuid)), bindparam("numbers", type_=ARRAY(Integer)))


@dataclass(frozen=True, kw_only=True, eq=False)
class DeliveryAttempt:
    """One delivery, claimed to be sent now."""

    id: UUID  # the delivery's
    webhook: UUID
    url: str
    secrets: list[str]
    type: str
    data: dict[str, Any]
    created_at: datetime
    tries: int  # with this one
    lease_until: datetime  # it also identifies this attempt among those of the delivery
    disabled: bool  # whether the webhook was disabled after the event
    place: Place  # what it occupies of the deliverer


@dataclass(frozen=True, kw_only=True)
class DeliveryOutcome:
    """How an attempt ended."""

    status: int | None = None  # of HTTP
    error: str | None = None  # None: the event arrived
    retry_after_s: float | None = None  # as the receiver asks
    took_s: float | None = None  # None: nothing was sent

    @property
    def gone(self) -> bool:
        """Whether the receiver wants no more events."""
        return self.status == 410


def claim(
    session: Session, choose: Callable[[Sequence[WaitingWebhook]], Sequence[Place]], lease: timedelta
) -> list[DeliveryAttempt]:
    """Claim deliveries that are due. The caller owns each attempt until its lease runs out.

    Args:
        choose: returns the places that attempts may take now, of webhooks with deliveries that are due.
    """
    places = choose([WaitingWebhook(**row) for row in session.execute(WAITING).mappings()])
    if not places:
        return []
    numbers = Counter(place.webhook for place in places)
    place_of = {place.webhook: place for place in places}
    chosen = {"webhooks": list(numbers), "numbers": list(numbers.values()), "lease": lease}
    rows = session.execute(CLAIM, chosen).mappings()
    return [DeliveryAttempt(place=place_of[row["webhook"]], **row) for row in rows]


def record_outcome(session: Session, attempt: DeliveryAttempt, outcome: DeliveryOutcome, delay_scale: float) -> None:
    """Store how an attempt ended, unless its lease has run out and the delivery is another's.

    Args:
        delay_scale: shortens the delays before the next attempt, for tests.
    """
    webhook = session.scalar(select(Webhook).where(Webhook.id == attempt.webhook).with_for_update(key_share=True))
    owned = (Delivery.id == attempt.id, Delivery.state == "pending", Delivery.next_at == attempt.lease_until)
    delivery = session.scalar(select(Delivery).where(*owned).with_for_update())
    if webhook is None or delivery is None:
        return
    now = session.execute(select(func.now())).scalar_one()
    delivery.status, delivery.error = outcome.status, outcome.error
    if outcome.took_s is not None:
        measure(webhook, outcome.took_s)
    if outcome.error is None:
        delivery.state, delivery.ended_at, webhook.failing_since = "delivered", now, None
        return
    webhook.failing_since = webhook.failing_since or now
    delay_s = retry_delay_s(attempt.tries, outcome.retry_after_s, delay_scale)
    if delay_s is None or outcome.gone or webhook.disabled_at is not None:
        delivery.state, delivery.ended_at = "failed", now
    else:
        delivery.next_at = now + timedelta(seconds=delay_s)
    if webhook.disabled_at is None and (outcome.gone or now - webhook.failing_since >= DISABLED_AFTER):
        disable(session, webhook)


def measure(webhook: Webhook, took_s: float) -> None:
    """Note how long an attempt took. Among quick ones nothing is written: the row would change with every event."""
    answer_s = smooth_answer_s(webhook.answer_s, took_s)
    if webhook.answer_s is None or max(answer_s, webhook.answer_s) > SLOW_S:
        webhook.answer_s = answer_s


def retry_delay_s(tries: int, retry_after_s: float | None, scale: float) -> float | None:
    """Return the seconds until the next attempt; None after the last. The receiver may ask for a longer delay."""
    if tries >= len(RETRY_DELAYS_S):
        return None
    return max(with_jitter(RETRY_DELAYS_S[tries]) * scale, min(retry_after_s or 0.0, MAX_RETRY_AFTER_S))


def get(session: Session, webhook: Webhook, delivery_id: UUID) -> Delivery:
    """Return a webhook's delivery, locked. Raises WebhookNotFound."""
    query = select(Delivery).where(Delivery.id == delivery_id, Delivery.webhook == webhook.id).with_for_update()
    delivery = session.scalar(query)
    if delivery is None:
        raise WebhookNotFound(f"there is no delivery {delivery_id} of the webhook {webhook.id}")
    return delivery


def page(
    session: Session, webhook: Webhook, *, limit: int, state: str | None = None, before: UUID | None = None
) -> list[Delivery]:
    """List a webhook's deliveries from the newest on; with `before`, those older than that one."""
    query = select(Delivery).where(Delivery.webhook == webhook.id)
    if state is not None:
        query = query.where(Delivery.state == state)
    if before is not None:
        last = select(Delivery.created_at, Delivery.id).where(Delivery.id == before, Delivery.webhook == webhook.id)
        query = query.where(tuple_(Delivery.created_at, Delivery.id) < last.scalar_subquery())
    return list(session.scalars(query.order_by(Delivery.created_at.desc(), Delivery.id.desc()).limit(limit)))


def redeliver(session: Session, webhook: Webhook, delivery_id: UUID) -> Delivery:
    """Make a delivery due now, under the same id and with all attempts left.

    Raises:
        WebhookNotFound, WebhookDisabled, RateLimited.
    """
    check_enabled(webhook)
    delivery = get(session, webhook, delivery_id)
    count_manual(session, webhook.tenant)
    delivery.state, delivery.tries, delivery.ended_at = "pending", 0, None
    delivery.next_at = func.clock_timestamp()
    session.flush()
    session.refresh(delivery)
    return delivery


def add_test_event(session: Session, webhook: Webhook) -> Delivery:
    """Add a delivery of an event of no job, to test the webhook. Raises WebhookDisabled, RateLimited."""
    check_enabled(webhook)
    count_manual(session, webhook.tenant)
    delivery = Delivery(webhook=webhook.id, job_id=NO_JOB, type=TEST_EVENT, data={"webhook": str(webhook.id)})
    session.add(delivery)
    session.flush()
    session.refresh(delivery)
    return delivery


def check_enabled(webhook: Webhook) -> None:
    """Raise WebhookDisabled when the webhook is disabled."""
    if webhook.disabled_at is not None:
        raise WebhookDisabled(f"the webhook {webhook.id} is disabled: enable it first")


def count_manual(session: Session, tenant: str) -> None:
    """Count a test or a redelivery of a tenant. Raises RateLimited.

    Each moves a time ahead by its interval, and may be made while that time is not too far off. The tenant is counted and not the
    webhook, because a webhook is soon deleted and made again.
    """
    now = func.clock_timestamp()
    from_now = func.greatest(func.coalesce(Tenant.manual_until, now), now) + timedelta(seconds=MANUAL_INTERVAL_S)
    ahead = timedelta(seconds=MANUAL_INTERVAL_S * MAX_MANUAL_AT_ONCE)
    counted = update(Tenant).where(Tenant.id == tenant, from_now <= now + ahead).values(manual_until=from_now)
    if session.execute(counted.returning(Tenant.id), execution_options={"synchronize_session": False}).first() is None:
        each = f"{MAX_MANUAL_AT_ONCE} tests and redeliveries at once, and then one every {MANUAL_INTERVAL_S:g} s"
        raise RateLimited(f"a tenant may ask for {each}")


def delete_old(session: Session) -> int:
    """Delete some of the deliveries that ended a month ago; return how many."""
    old = select(Delivery.id).where(Delivery.ended_at < func.now() - LOG_RETENTION).limit(DELETE_CHUNK_ROWS)
    deletion = delete(Delivery).where(Delivery.id.in_(old.with_for_update(skip_locked=True))).returning(Delivery.id)
    return len(session.execute(deletion, execution_options={"synchronize_session": False}).all())
