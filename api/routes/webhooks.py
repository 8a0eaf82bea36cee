"""/v1/webhooks: the URLs to which a tenant's events are sent, and what has become of each delivery."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.accepted import Accepted
from api.auth import Admin
from api.dependencies import SettingsDep, UnitOfWorkDep
from api.paging import Limit, split_page
from api.routing import ApiRoute
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
router = APIRouter(responses=ERRORS, route_class=ApiRoute)


@router.post("", status_code=201, response_model=WebhookSecret)
def create(body: NewWebhook, principal: Admin, unit_of_work: UnitOfWorkDep, settings: SettingsDep) -> Accepted:
    """Create a webhook, to which events of jobs are sent. The secret that verifies them is shown here and never again."""
    webhooks.check_url(EgressPolicy.from_settings(settings), body.url)
    webhook = webhooks.add(unit_of_work.session, principal.tenant, body.subscription())
    unit_of_work.session.refresh(webhook)
    audit.record(unit_of_work.session, principal.tenant, principal.key, "webhook.create", webhook.id)
    return Accepted(WebhookSecret.of(webhook).model_dump(mode="json"), f"/v1/webhooks/{webhook.id}")


@router.get("")
def page(principal: Admin, unit_of_work: UnitOfWorkDep) -> WebhookList:
    """List the webhooks, the oldest first."""
    return WebhookList(
        webhooks=[WebhookView.of(webhook) for webhook in webhooks.list_webhooks(unit_of_work.session, principal.tenant)]
    )


@router.get("/{webhook_id}")
def get(webhook_id: UUID, principal: Admin, unit_of_work: UnitOfWorkDep) -> WebhookView:
    """Return one webhook."""
    return WebhookView.of(webhooks.get(unit_of_work.session, principal.tenant, webhook_id))


@router.patch("/{webhook_id}")
def change(
    webhook_id: UUID, body: WebhookChange, principal: Admin, unit_of_work: UnitOfWorkDep, settings: SettingsDep
) -> WebhookView:
    """Change the given fields. With enabled: true it is sent events again. Pending deliveries go to the new URL."""
    if body.url is not None:
        webhooks.check_url(EgressPolicy.from_settings(settings), body.url)
    webhook = webhooks.get(unit_of_work.session, principal.tenant, webhook_id, lock=True)
    body.apply(webhook)
    if body.enabled:
        webhooks.enable(webhook)
    audit.record(unit_of_work.session, principal.tenant, principal.key, "webhook.change", webhook_id)
    return WebhookView.of(webhook)


@router.delete("/{webhook_id}", status_code=204)
def delete(webhook_id: UUID, principal: Admin, unit_of_work: UnitOfWorkDep) -> None:
    """Delete a webhook, its pending deliveries and its log."""
    unit_of_work.session.delete(webhooks.get(unit_of_work.session, principal.tenant, webhook_id, lock=True))
    audit.record(unit_of_work.session, principal.tenant, principal.key, "webhook.delete", webhook_id)


@router.post("/{webhook_id}/rotate")
def rotate(webhook_id: UUID, principal: Admin, unit_of_work: UnitOfWorkDep) -> WebhookSecret:
    """Make a new secret, shown once. The one before signs too until the next rotation, or until it is deleted."""
    webhook = webhooks.get(unit_of_work.session, principal.tenant, webhook_id, lock=True)
    webhooks.rotate_secret(webhook)
    audit.record(unit_of_work.session, principal.tenant, principal.key, "webhook.rotate", webhook_id)
    return WebhookSecret.of(webhook)


@router.delete("/{webhook_id}/secrets/old", status_code=204)
def drop_old_secret(webhook_id: UUID, principal: Admin, unit_of_work: UnitOfWorkDep) -> None:
    """Delete the secret before the latest. Repeating it changes nothing."""
    webhooks.drop_old_secret(webhooks.get(unit_of_work.session, principal.tenant, webhook_id, lock=True))


@router.post("/{webhook_id}/test", status_code=202)
def test(webhook_id: UUID, principal: Admin, unit_of_work: UnitOfWorkDep) -> DeliveryView:
    """Send an event of the type webhook.test, with as many tries as any other."""
    webhook = webhooks.get(unit_of_work.session, principal.tenant, webhook_id, lock=True)
    return DeliveryView.of(deliveries.add_test_event(unit_of_work.session, webhook))


@router.get("/{webhook_id}/deliveries")
def log(
    webhook_id: UUID,
    principal: Admin,
    unit_of_work: UnitOfWorkDep,
    state: DeliveryState | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> DeliveryPage:
    """List deliveries, the newest first, until a month after they have ended."""
    webhook = webhooks.get(unit_of_work.session, principal.tenant, webhook_id)
    rows = deliveries.page(unit_of_work.session, webhook, limit=limit + 1, state=state, before=cursor)
    page, next_cursor = split_page(rows, limit, lambda delivery: delivery.id)
    return DeliveryPage(deliveries=list(map(DeliveryView.of, page)), next_cursor=next_cursor)


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202)
def redeliver(webhook_id: UUID, delivery_id: UUID, principal: Admin, unit_of_work: UnitOfWorkDep) -> DeliveryView:
    """Send a delivery now, whether it has arrived, has failed or is pending. Its id stays the same."""
    webhook = webhooks.get(unit_of_work.session, principal.tenant, webhook_id, lock=True)
    return DeliveryView.of(deliveries.redeliver(unit_of_work.session, webhook, delivery_id))
