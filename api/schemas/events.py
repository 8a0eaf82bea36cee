"""Schemas of a job's events."""

from datetime import datetime
from typing import Any, Self

from api.schemas.rows import Row
from jobs.queue.events import EventType
from jobs.tables import Event


class EventView(Row):
    """Something that happened to a job."""

    seq: int
    type: EventType
    data: dict[str, Any]  # state, attempt; stop_reason, error_code, error_message where there are such
    at: datetime

    @classmethod
    def of(cls, event: Event) -> Self:
        """Return the view of an event's row."""
        return cls.model_validate(event)
