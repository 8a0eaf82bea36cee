"""Schemas of webhooks and deliveries."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.schemas.rows import Row
from jobs.queue.events import EventType
from jobs.tables import Delivery, Webhook
from jobs.webhooks.deliveries import TEST_EVENT
from jobs.webhooks.egress import MAX_URL_LENGTH
from jobs.webhooks.subscriptions import ENDED, Subscription

DeliveryState = Literal["pending", "delivered", "failed"]
Url = Annotated[str, Field(min_length=1, max_length=MAX_URL_LENGTH)]
Events = Annotated[list[EventType], Field(min_length=1, max_length=len(EventType))]


class NewWebhook(BaseModel):
    """A webhook to be created: its URL and the events it is sent."""

    model_config = ConfigDict(extra="forbid")

    url: Url
    events: Events = list(ENDED)
    every_job: bool = True  # or only of those that name it in their field webhooks

    def subscription(self) -> Subscription:
        """Return the subscription that this asks for."""
        return Subscription(url=self.url, events=list(dict.fromkeys(self.events)), every_job=self.every_job)


class WebhookChange(BaseModel):
    """A change of a webhook. A field left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    url: Url | None = None
    events: Events | None = None
    every_job: bool | None = None
    enabled: Literal[True] | None = None  # one that failed for too long

    @field_validator("events")
    @classmethod
    def drop_duplicates(cls, events: list[EventType] | None) -> list[EventType] | None:
        return None if events is None else list(dict.fromkeys(events))

    def apply(self, webhook: Webhook) -> None:
        """Set the given fields of a webhook's row."""
        for name, value in self.model_dump(exclude={"enabled"}, exclude_none=True).items():
            setattr(webhook, name, value)


class WebhookView(Row):
    """One webhook."""

    id: UUID
    url: str
    events: list[EventType]
    every_job: bool
    created_at: datetime
    failing_since: datetime | None  # no delivery has arrived since
    disabled_at: datetime | None  # nothing is sent since; PATCH enabled: true
    old_secret: bool  # whether the secret before the latest rotation signs too

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """Return the view of a webhook's row."""
        return cls.model_validate({**vars(webhook), "old_secret": len(webhook.secrets) > 1})


class WebhookSecret(WebhookView):
    """A webhook with its secret, which is shown once."""

    secret: str  # whsec_...; verifies the header webhook-signature

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """Return the view of a webhook's row with its latest secret."""
        return cls.model_validate({**WebhookView.of(webhook).model_dump(), "secret": webhook.secrets[0]})


class WebhookList(BaseModel):
    """All webhooks of the tenant."""

    webhooks: list[WebhookView]  # by age


class DeliveryView(Row):
    """One event on its way to one webhook."""

    id: UUID  # the header webhook-id of every try
    type: str  # an event's, or webhook.test
    job: UUID | None
    state: DeliveryState
    tries: int  # begun
    status: int | None  # HTTP, of the last try
    error: str | None  # of the last try
    next_at: datetime | None  # of the next try, while it is pending
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """Return the view of a delivery's row."""
        job = None if delivery.type == TEST_EVENT else delivery.job_id
        next_at = delivery.next_at if delivery.state == "pending" else None
        return cls.model_validate({**vars(delivery), "job": job, "next_at": next_at})


class DeliveryPage(BaseModel):
    """A page of deliveries."""

    deliveries: list[DeliveryView]  # the newest first
    next_cursor: str | None  # None at the end
