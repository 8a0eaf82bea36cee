"""The audit log: cancels, deletions and every change of keys, none of which can be undone."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.tables import AuditLine


def record(session: Session, tenant: str, actor: str, action: str, subject: object) -> None:
    """Add a line in the transaction of the action, so that neither exists without the other."""
    session.add(AuditLine(tenant=tenant, actor=actor, action=action, subject=str(subject)))


def page(session: Session, tenant: str, *, limit: int, before: int | None = None) -> list[AuditLine]:
    """List a tenant's lines from the newest on; with `before`, those whose seq is lower."""
    query = select(AuditLine).where(AuditLine.tenant == tenant).order_by(AuditLine.seq.desc()).limit(limit)
    return list(session.scalars(query if before is None else query.where(AuditLine.seq < before)))
