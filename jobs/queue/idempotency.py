"""Submissions that may be repeated: the first answer is given again."""

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
# written once and without the ORM: every submission sends both, and making them costs more than sending them
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


def begin(session: Session, tenant: str, key: str, fingerprint: str) -> dict[str, Any] | None:
    """Take a key for this transaction; None when it is new, else what was answered then.

    A request with the same key that is not committed yet is waited for, as long as any lock.

    Raises:
        KeyReused: it came with another request.
        KeyInUse: that request takes too long.
    """
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


def remember(session: Session, tenant: str, key: str, answer: dict[str, Any]) -> None:
    session.connection().execute(REMEMBER, {"of_tenant": tenant, "of_key": key, "answer": answer})


def forget_old(session: Session) -> int:
    """Keys older than a day; how many."""
    old = IdempotencyKey.created_at < func.now() - KEPT
    return len(session.execute(delete(IdempotencyKey).where(old).returning(IdempotencyKey.key)).all())
