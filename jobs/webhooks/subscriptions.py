"""Webhooks: the addresses to which the events of a tenant's jobs are sent."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs.errors import InvalidWebhook, Problem, QuotaExceeded, WebhookNotFound
from jobs.queue.events import EventType
from jobs.tables import Delivery, Tenant, Webhook
from jobs.webhooks.egress import EgressPolicy, EgressRefused
from jobs.webhooks.signing import new_secret

MAX_WEBHOOKS = 16  # of a tenant
MAX_SECRETS = 2  # of a webhook: the new one and the one before
ENDED = (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED, EventType.EXPIRED)


@dataclass(frozen=True, kw_only=True)
class Subscription:
    """The address of a webhook and the events that are sent to it."""

    url: str
    events: Sequence[EventType] = ENDED
    every_job: bool = True  # or only the jobs that name it


def check_url(policy: EgressPolicy, url: str) -> None:
    """Raise InvalidWebhook when nothing may be sent to the URL. This looks up its host, so call it outside a transaction."""
    try:
        policy.check(url)
    except EgressRefused as error:
        raise InvalidWebhook([Problem(field="url", message=str(error))]) from error


def add(session: Session, tenant: str, wanted: Subscription) -> Webhook:
    """Add a webhook with a new secret. Raises QuotaExceeded."""
    # the lock lets each of several requests see what the one before has added
    session.execute(select(Tenant.id).where(Tenant.id == tenant).with_for_update(key_share=True))
    has = session.scalar(select(func.count()).where(Webhook.tenant == tenant)) or 0
    if has >= MAX_WEBHOOKS:
        raise QuotaExceeded(f"may have {MAX_WEBHOOKS} webhooks, has {has}: delete some")
    webhook = Webhook(id=uuid4(), tenant=tenant, url=wanted.url, events=list(wanted.events), every_job=wanted.every_job)
    webhook.secrets = [new_secret()]
    session.add(webhook)
    session.flush()
    return webhook


def get(session: Session, tenant: str, webhook_id: UUID, *, lock: bool = False) -> Webhook:
    """Return a tenant's webhook. Raises WebhookNotFound."""
    query = select(Webhook).where(Webhook.id == webhook_id, Webhook.tenant == tenant)
    webhook = session.scalar(query.with_for_update(key_share=True) if lock else query)
    if webhook is None:
        raise WebhookNotFound(f"there is no webhook {webhook_id}")
    return webhook


def list_webhooks(session: Session, tenant: str) -> list[Webhook]:
    """List a tenant's webhooks by age."""
    return list(session.scalars(select(Webhook).where(Webhook.tenant == tenant).order_by(Webhook.created_at, Webhook.id)))


def find_known_ids(session: Session, tenant: str, ids: Collection[UUID]) -> set[UUID]:
    """Return those of the ids that are the tenant's webhooks."""
    if not ids:
        return set()
    return set(session.scalars(select(Webhook.id).where(Webhook.tenant == tenant, Webhook.id.in_(ids))))


def rotate_secret(webhook: Webhook) -> str:
    """Give the webhook a new secret and return it. The secret before keeps signing too, an older one does not."""
    webhook.secrets = [new_secret(), *webhook.secrets][:MAX_SECRETS]
    return webhook.secrets[0]


def drop_old_secret(webhook: Webhook) -> None:
    """Sign with the newest secret only."""
    webhook.secrets = webhook.secrets[:1]


def enable(webhook: Webhook) -> None:
    """Send to the webhook again."""
    webhook.disabled_at = webhook.failing_since = None


def disable(session: Session, webhook: Webhook) -> None:
    """Send nothing more to the webhook, and fail its pending deliveries.

    The caller has locked the row; deliveries are always locked after their webhook.
    """
    webhook.disabled_at = session.execute(select(func.now())).scalar_one()
    session.flush()
    waiting = update(Delivery).where(Delivery.webhook == webhook.id, Delivery.state == "pending")
    failed = waiting.values(state="failed", error="the webhook was disabled", ended_at=func.now())
    session.execute(failed, execution_options={"synchronize_session": False})
