"""/v1/webhooks: where a tenant wants to be told what happens to its jobs, and whether that has arrived."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.auth import Admin
from api.dependencies import SettingsDep, UnitDep
from api.paging import Limit, paged
from api.schemas.problems import ERRORS
from api.schemas.webhooks import (
    DeliveryPage,
    DeliveryState,
    DeliveryView,
    NewWebhook,
    WebhookChange,
    WebhookList,
    WebhookSecret,
    WebhookView,
)
from jobs.tenants import audit
from jobs.webhooks import deliveries
from jobs.webhooks import subscriptions as webhooks
from jobs.webhooks.egress import EgressPolicy

Cursor = Annotated[UUID | None, Query(description="next_cursor of the page before")]
router = APIRouter(responses=ERRORS)


@router.post("", status_code=201)
def create(body: NewWebhook, who: Admin, unit: UnitDep, settings: SettingsDep, response: Response) -> WebhookSecret:
    """Be told of jobs; the secret that verifies what comes is shown here and never again."""
    webhooks.check_url(EgressPolicy.from_settings(settings), body.url)
    webhook = webhooks.add(unit.session, who.tenant, body.subscription())
    unit.session.refresh(webhook)
    audit.record(unit.session, who.tenant, who.key, "webhook.create", webhook.id)
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}"
    return WebhookSecret.of(webhook)


@router.get("")
def page(who: Admin, unit: UnitDep) -> WebhookList:
    return WebhookList(webhooks=[WebhookView.of(webhook) for webhook in webhooks.list_webhooks(unit.session, who.tenant)])


@router.get("/{webhook_id}")
def get(webhook_id: UUID, who: Admin, unit: UnitDep) -> WebhookView:
    return WebhookView.of(webhooks.get(unit.session, who.tenant, webhook_id))


@router.patch("/{webhook_id}")
def change(webhook_id: UUID, body: WebhookChange, who: Admin, unit: UnitDep, settings: SettingsDep) -> WebhookView:
    """Change what is given; with enabled: true it is sent events again. What waits goes to the new URL."""
    if body.url is not None:
        webhooks.check_url(EgressPolicy.from_settings(settings), body.url)
    webhook = webhooks.get(unit.session, who.tenant, webhook_id, lock=True)
    body.apply(webhook)
    if body.enabled:
        webhooks.enable(webhook)
    audit.record(unit.session, who.tenant, who.key, "webhook.change", webhook_id)
    return WebhookView.of(webhook)


@router.delete("/{webhook_id}", status_code=204)
def delete(webhook_id: UUID, who: Admin, unit: UnitDep) -> None:
    """Remove it, what waits to be delivered, and its log."""
    unit.session.delete(webhooks.get(unit.session, who.tenant, webhook_id, lock=True))
    audit.record(unit.session, who.tenant, who.key, "webhook.delete", webhook_id)


@router.post("/{webhook_id}/rotate")
def rotate(webhook_id: UUID, who: Admin, unit: UnitDep) -> WebhookSecret:
    """A new secret, shown once. The one before signs too until the next rotation, or until it is deleted."""
    webhook = webhooks.get(unit.session, who.tenant, webhook_id, lock=True)
    webhooks.rotate_secret(webhook)
    audit.record(unit.session, who.tenant, who.key, "webhook.rotate", webhook_id)
    return WebhookSecret.of(webhook)


@router.delete("/{webhook_id}/secrets/old", status_code=204)
def drop_old_secret(webhook_id: UUID, who: Admin, unit: UnitDep) -> None:
    """Sign with the latest secret alone. Repeating it changes nothing."""
    webhooks.drop_old_secret(webhooks.get(unit.session, who.tenant, webhook_id, lock=True))


@router.post("/{webhook_id}/test", status_code=202)
def test(webhook_id: UUID, who: Admin, unit: UnitDep) -> DeliveryView:
    """Send an event of the type webhook.test, with tries like any other's."""
    webhook = webhooks.get(unit.session, who.tenant, webhook_id, lock=True)
    return DeliveryView.of(deliveries.add_test_event(unit.session, webhook))


@router.get("/{webhook_id}/deliveries")
def log(
    webhook_id: UUID, who: Admin, unit: UnitDep, state: DeliveryState | None = None, cursor: Cursor = None, limit: Limit = 50
) -> DeliveryPage:
    """What was sent, or will be, the newest first; for a month after it has ended."""
    webhook = webhooks.get(unit.session, who.tenant, webhook_id)
    found = deliveries.page(unit.session, webhook, limit=limit + 1, state=state, before=cursor)
    page, more = paged(found, limit, lambda delivery: delivery.id)
    return DeliveryPage(deliveries=list(map(DeliveryView.of, page)), next_cursor=more)


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202)
def redeliver(webhook_id: UUID, delivery_id: UUID, who: Admin, unit: UnitDep) -> DeliveryView:
    """Send it now, whether it arrived before, failed, or waits for its next try; it has the same id again."""
    webhook = webhooks.get(unit.session, who.tenant, webhook_id, lock=True)
    return DeliveryView.of(deliveries.redeliver(unit.session, webhook, delivery_id))
