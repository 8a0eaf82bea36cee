"""Events on their way to webhooks: which are due, how each try ends, the log.

A try is claimed by moving next_at ahead. That is a lease: nothing is locked while HTTP runs, and what a deliverer that was
killed had claimed is due again when the lease has run out. Every event arrives at least once; its id tells doubles apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session
from sqlalchemy.sql import bindparam

from jobs.backoff import with_jitter
from jobs.errors import WebhookDisabled, WebhookNotFound
from jobs.tables import Delivery, Webhook
from jobs.webhooks.subscriptions import disable

TEST = "webhook.test"  # an event of no job
NO_JOB = UUID(int=0)
RESTS_S = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)  # before each try
LONGEST_REST_S = 86_400.0  # that a receiver may ask for
DISABLED_AFTER = timedelta(days=5)  # without one delivery that arrived
KEPT = timedelta(days=30)  # in the log, once it has ended
FORGOTTEN_TOGETHER = 5000
AT_ONCE = 2  # tries of one webhook; of one that fails one alone

# Webhooks for which something waits are found by skipping through the index of what is pending, so that one with a million
# deliveries to catch up with costs as much as any. What is due of each is then looked up: the longest due first, and among all
# webhooks too. Those that fail have a share of the room, since each of their tries may take as long as a try may.
CLAIM = text("""
WITH RECURSIVE waiting (webhook) AS (
    (SELECT webhook FROM deliveries WHERE state = 'pending' ORDER BY webhook LIMIT 1)
    UNION ALL
    SELECT next.webhook FROM waiting CROSS JOIN LATERAL (
        SELECT webhook FROM deliveries WHERE state = 'pending' AND webhook > waiting.webhook ORDER BY webhook LIMIT 1) AS next
),
due AS (
    SELECT found.*, webhooks.failing_since IS NOT NULL AS failing, coalesce((:under_way ->> waiting.webhook::text)::int, 0)
            + row_number() OVER (PARTITION BY waiting.webhook ORDER BY found.next_at) AS nth
    FROM waiting JOIN webhooks ON webhooks.id = waiting.webhook CROSS JOIN LATERAL (
        SELECT id, next_at FROM deliveries
        WHERE webhook = waiting.webhook AND state = 'pending' AND next_at <= now()
        ORDER BY next_at LIMIT :at_once FOR UPDATE SKIP LOCKED) AS found
),
fair AS (
    SELECT due.*, row_number() OVER (PARTITION BY failing ORDER BY next_at) AS turn FROM due
    WHERE nth <= CASE WHEN failing THEN 1 ELSE :at_once END
),
picked AS (
    SELECT id, failing FROM fair WHERE NOT failing OR turn <= :room_for_failing ORDER BY next_at LIMIT :room
)
UPDATE deliveries SET tries = tries + 1, next_at = now() + :lease
FROM picked, webhooks
WHERE deliveries.id = picked.id AND webhooks.id = deliveries.webhook
RETURNING deliveries.id, deliveries.webhook, deliveries.type, deliveries.data, deliveries.created_at, deliveries.tries,
    deliveries.next_at AS lease_until, webhooks.url, webhooks.secrets, webhooks.disabled_at IS NOT NULL AS disabled,
    picked.failing
""").bindparams(bindparam("under_way", type_=JSONB), at_once=AT_ONCE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Try:
    """One delivery, claimed to be sent now."""

    id: UUID  # the delivery's
    webhook: UUID
    url: str
    secrets: list[str]
    type: str
    data: dict[str, Any]
    created_at: datetime
    tries: int  # with this one
    lease_until: datetime  # also what tells this try from any other of the delivery
    disabled: bool  # the webhook, since the event
    failing: bool  # the webhook


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a try ended."""

    status: int | None = None  # of HTTP
    error: str | None = None  # None: it arrived
    retry_after_s: float | None = None  # what the receiver asks for

    @property
    def gone(self) -> bool:
        return self.status == 410


@dataclass(frozen=True, kw_only=True)
class DeliveryCapacity:
    """For tries that may begin now."""

    room: int
    room_for_failing: int  # of it, for webhooks that fail
    under_way: Mapping[UUID, int]  # tries of each webhook


def claim(session: Session, room: DeliveryCapacity, lease: timedelta) -> list[Try]:
    """Take deliveries that are due; each try is ours until its lease runs out."""
    under_way = {str(webhook): tries for webhook, tries in room.under_way.items()}
    limits = {"room": room.room, "room_for_failing": room.room_for_failing, "lease": lease, "under_way": under_way}
    return [Try(**row) for row in session.execute(CLAIM, limits).mappings()]


def settle(session: Session, this: Try, outcome: Outcome, rest_scale: float) -> None:
    """Write down how a try ended, unless the delivery is no longer ours; rest_scale shortens the rests of tests."""
    webhook = session.scalar(select(Webhook).where(Webhook.id == this.webhook).with_for_update(key_share=True))
    ours = (Delivery.id == this.id, Delivery.state == "pending", Delivery.next_at == this.lease_until)
    delivery = session.scalar(select(Delivery).where(*ours).with_for_update())
    if webhook is None or delivery is None:
        return
    now = session.execute(select(func.now())).scalar_one()
    delivery.status, delivery.error = outcome.status, outcome.error
    if outcome.error is None:
        delivery.state, delivery.ended_at, webhook.failing_since = "delivered", now, None
        return
    webhook.failing_since = webhook.failing_since or now
    rest = rest_s(this.tries, outcome.retry_after_s, rest_scale)
    if rest is None or outcome.gone or webhook.disabled_at is not None:
        delivery.state, delivery.ended_at = "failed", now
    else:
        delivery.next_at = now + timedelta(seconds=rest)
    if webhook.disabled_at is None and (outcome.gone or now - webhook.failing_since >= DISABLED_AFTER):
        disable(session, webhook)


def rest_s(tries: int, asked_s: float | None, scale: float) -> float | None:
    """Until the next try; None after the last. The receiver may ask for a longer one."""
    if tries >= len(RESTS_S):
        return None
    return max(with_jitter(RESTS_S[tries]) * scale, min(asked_s or 0.0, LONGEST_REST_S))


def get(session: Session, webhook: Webhook, delivery_id: UUID) -> Delivery:
    """Locked. Raises WebhookNotFound."""
    query = select(Delivery).where(Delivery.id == delivery_id, Delivery.webhook == webhook.id).with_for_update()
    delivery = session.scalar(query)
    if delivery is None:
        raise WebhookNotFound(f"there is no delivery {delivery_id} of the webhook {webhook.id}")
    return delivery


def page(
    session: Session, webhook: Webhook, *, limit: int, state: str | None = None, before: UUID | None = None
) -> list[Delivery]:
    """A webhook's deliveries from the newest on; those older than the one `before`."""
    query = select(Delivery).where(Delivery.webhook == webhook.id)
    if state is not None:
        query = query.where(Delivery.state == state)
    if before is not None:
        last = select(Delivery.created_at, Delivery.id).where(Delivery.id == before, Delivery.webhook == webhook.id)
        query = query.where(tuple_(Delivery.created_at, Delivery.id) < last.scalar_subquery())
    return list(session.scalars(query.order_by(Delivery.created_at.desc(), Delivery.id.desc()).limit(limit)))


def redeliver(session: Session, webhook: Webhook, delivery_id: UUID) -> Delivery:
    """Send it again now, under the same id, with all its tries before it. Raises WebhookNotFound, WebhookDisabled."""
    refuse_disabled(webhook)
    delivery = get(session, webhook, delivery_id)
    delivery.state, delivery.tries, delivery.ended_at = "pending", 0, None
    delivery.next_at = func.clock_timestamp()
    session.flush()
    session.refresh(delivery)
    return delivery


def add_test(session: Session, webhook: Webhook) -> Delivery:
    """An event of no job, to see whether it arrives. Raises WebhookDisabled."""
    refuse_disabled(webhook)
    delivery = Delivery(webhook=webhook.id, job_id=NO_JOB, type=TEST, data={"webhook": str(webhook.id)})
    session.add(delivery)
    session.flush()
    session.refresh(delivery)
    return delivery


def refuse_disabled(webhook: Webhook) -> None:
    if webhook.disabled_at is not None:
        raise WebhookDisabled(f"the webhook {webhook.id} is disabled: enable it first")


def forget_old(session: Session) -> int:
    """Delete some of those that ended a month ago; how many."""
    old = select(Delivery.id).where(Delivery.ended_at < func.now() - KEPT).limit(FORGOTTEN_TOGETHER)
    gone = delete(Delivery).where(Delivery.id.in_(old.with_for_update(skip_locked=True))).returning(Delivery.id)
    return len(session.execute(gone, execution_options={"synchronize_session": False}).all())
