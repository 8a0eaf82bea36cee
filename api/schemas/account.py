"""Schemas of a tenant's usage, queue and audit log."""

from datetime import datetime

from pydantic import BaseModel

from api.schemas.rows import Row


class QueueView(BaseModel):
    """How many of this tenant's jobs wait and run."""

    queued: int
    running: int
    oldest_queued_s: float | None  # age of the one that waits longest


class UsageView(Row):
    """What the tenant has, and may have. A limit that is null is no limit."""

    queued: int
    running: int
    uploads: int
    stored_bytes: int  # by the last measurement, minutes ago
    max_queued: int | None
    max_running: int | None
    max_uploads: int | None
    max_stored_bytes: int | None


class AuditView(Row):
    """One line of the audit log."""

    seq: int
    at: datetime
    actor: str  # id of a key, or an operator's user name
    action: str
    subject: str


class AuditPage(BaseModel):
    """A page of the audit log."""

    lines: list[AuditView]  # the newest first
    next_cursor: str | None
