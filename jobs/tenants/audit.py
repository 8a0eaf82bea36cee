"""What was done that cannot be undone: cancels, deletions, everything about keys."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.tables import AuditLine


def note(session: Session, tenant: str, actor: str, action: str, subject: object) -> None:
    """In the transaction of what was done, so that there is neither without the other."""
    session.add(AuditLine(tenant=tenant, actor=actor, action=action, subject=str(subject)))


def page(session: Session, tenant: str, *, limit: int, before: int | None = None) -> list[AuditLine]:
    """A tenant's lines from the newest on, those with a seq below `before`."""
    query = select(AuditLine).where(AuditLine.tenant == tenant).order_by(AuditLine.seq.desc()).limit(limit)
    return list(session.scalars(query if before is None else query.where(AuditLine.seq < before)))
