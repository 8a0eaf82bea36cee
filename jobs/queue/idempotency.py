"""Idempotency keys: a request that is repeated with its key gets the first answer again."""

from datetime import timedelta
from typing import Any, cast

from psycopg.errors import LockNotAvailable
from sqlalchemy import Table, bindparam, delete, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jobs.errors import KeyInUse, KeyReused
from jobs.tables import IdempotencyKey

KEPT = timedelta(days=1)
# Made once and run without the ORM: every submission sends both, and making a statement costs more than sending it.
KEYS = cast(Table, IdempotencyKey.__table__)
TAKE = (
    insert(KEYS)
    .values({name: bindparam(name) for name in ("tenant", "key", "fingerprint")})
    .on_conflict_do_nothing()
    .returning(KEYS.c.key)
)
REMEMBER = (
    update(KEYS)
    .where(KEYS.c.tenant == bindparam("of_tenant"), KEYS.c.key == bindparam("of_key"))
    .values(answer=bindparam("answer"))
)


def find_answer(session: Session, tenant: str, key: str | None, fingerprint: str) -> dict[str, Any] | None:
    """Return the answer to an earlier request with the key, and wait for nobody. Raises KeyReused."""
    row = None if key is None else session.get(IdempotencyKey, (tenant, key))
    if row is None or row.answer is None:
        return None
    if row.fingerprint != fingerprint:
        raise KeyReused(f"the key {key} came with another request before")
    return row.answer


def reserve_key(session: Session, tenant: str, key: str | None, fingerprint: str) -> dict[str, Any] | None:
    """Reserve a key until the transaction ends, and return the earlier answer if there is one.

    A request without a key is always new. While another transaction holds the key, this one waits like for any lock.

    Args:
        key: as the client sent it; None when it sent none.
        fingerprint: what tells one request from another.

    Returns:
        The answer that `remember` stored, or None when the request is new.

    Raises:
        KeyReused: the key came with another request before.
        KeyInUse: the other transaction takes too long.
    """
    if key is None:
        return None
    try:
        if session.connection().scalar(TAKE, {"tenant": tenant, "key": key, "fingerprint": fingerprint}) is not None:
            return None
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise KeyInUse(f"a request with the key {key} is still being answered") from error
        raise
    row = session.get_one(IdempotencyKey, (tenant, key))
    if row.fingerprint != fingerprint:
        raise KeyReused(f"the key {key} came with another request before")
    return row.answer


def remember(session: Session, tenant: str, key: str | None, answer: dict[str, Any]) -> None:
    """Store the answer to a request that `reserve_key` found new. Without a key there is nothing to store."""
    if key is not None:
        session.connection().execute(REMEMBER, {"of_tenant": tenant, "of_key": key, "answer": answer})


def forget_old(session: Session) -> int:
    """Delete keys older than a day and return how many there were."""
    old = IdempotencyKey.created_at < func.now() - KEPT
    return len(session.execute(delete(IdempotencyKey).where(old).returning(IdempotencyKey.key)).all())
