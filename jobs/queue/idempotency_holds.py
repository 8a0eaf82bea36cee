"""Idempotency keys of requests that take long: held by a row of their own, not by a transaction.

A hold that nobody renews runs out, so that a process that died leaves no key behind.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, delete, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from jobs.errors import KeyInUse, KeyReused
from jobs.tables import IdempotencyKey

HOLD = timedelta(seconds=120)
RENEW_S = 15.0


@dataclass(frozen=True)
class KeyHold:
    """A key that a request holds while it is answered."""

    tenant: str
    key: str
    since: datetime  # tells this hold from a later one


def hold_key(session: Session, tenant: str, key: str, fingerprint: str) -> KeyHold | dict[str, Any]:
    """Hold a key that is new or whose last hold has run out; return the earlier answer if there is one.

    Raises:
        KeyReused: the key came with another request before.
        KeyInUse: a request with the key is being answered.
    """
    now = func.clock_timestamp()
    taken = insert(IdempotencyKey).values(tenant=tenant, key=key, fingerprint=fingerprint, created_at=now)
    ran_out = and_(IdempotencyKey.answer.is_(None), IdempotencyKey.created_at < now - HOLD)
    taken = taken.on_conflict_do_update(
        index_elements=["tenant", "key"], set_={"created_at": now, "fingerprint": fingerprint}, where=ran_out
    )
    since = session.scalar(taken.returning(IdempotencyKey.created_at))
    if since is not None:
        return KeyHold(tenant, key, since)
    row = session.get(IdempotencyKey, (tenant, key))
    if row is not None and row.fingerprint != fingerprint:
        raise KeyReused(f"the key {key} came with another request before")
    if row is None or row.answer is None:
        raise KeyInUse(f"a request with the key {key} is still being answered")
    return row.answer


def renew(session: Session, hold: KeyHold) -> KeyHold:
    """Hold a key for longer. Raises KeyInUse when the hold has run out and another request has the key."""
    renewed = update(IdempotencyKey).where(mine(hold)).values(created_at=func.clock_timestamp())
    since = session.scalar(renewed.returning(IdempotencyKey.created_at))
    if since is None:
        raise KeyInUse(f"another request took the key {hold.key}: it was not answered in time")
    return KeyHold(hold.tenant, hold.key, since)


def remember(session: Session, hold: KeyHold, answer: dict[str, Any]) -> None:
    """Store the answer with what it tells of, in one transaction. Raises KeyInUse as `renew` does."""
    stored = update(IdempotencyKey).where(mine(hold)).values(answer=answer)
    if session.scalar(stored.returning(IdempotencyKey.key)) is None:
        raise KeyInUse(f"another request took the key {hold.key}: it was not answered in time")


def release(session: Session, hold: KeyHold) -> None:
    """Give a key back whose request failed."""
    session.execute(delete(IdempotencyKey).where(mine(hold)))


def mine(hold: KeyHold) -> Any:
    """Return the condition that the key is held by this hold."""
    return and_(
        IdempotencyKey.tenant == hold.tenant,
        IdempotencyKey.key == hold.key,
        IdempotencyKey.created_at == hold.since,
        IdempotencyKey.answer.is_(None),
    )
