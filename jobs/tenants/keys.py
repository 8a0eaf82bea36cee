"""API keys: dq_ID_SECRET. The secret is 256 random bits, so one round of SHA-256 is enough to hash it."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import InternalError
from sqlalchemy.orm import Session

from jobs.errors import KeyNotFound, Unauthorized
from jobs.tables import ApiKey, Tenant

PREFIX = "dq"
TOKEN = re.compile(rf"{PREFIX}_[0-9A-Za-z]{{1,64}}_[!-~]{{1,256}}")
INVALID = "the key is not valid, has expired or was revoked"
USED_PRECISION = timedelta(minutes=1)  # of last_used_at, which is not written at every request


class Scope(StrEnum):
    """What the holder of a key may do."""

    READ = "read"  # look at jobs, download
    SUBMIT = "submit"  # submit, upload, cancel, stop, retry, delete
    ADMIN = "admin"  # all of it; webhooks and the audit too


@dataclass(frozen=True, kw_only=True)
class Principal:
    """The tenant and key that a request was sent with."""

    tenant: str
    key: str  # its id
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None  # None: what the settings say
    submits_per_minute: int | None = None
    max_streams: int | None = None

    def may(self, scope: Scope) -> bool:
        """Return whether the key allows the scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


def create(session: Session, tenant: str, name: str, scopes: Collection[Scope], lifetime: timedelta | None = None) -> str:
    """Create a key of a tenant, and the tenant where there is none; return the token, which is never shown again."""
    session.execute(insert(Tenant).values(id=tenant).on_conflict_do_nothing())
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    expires_at = None if lifetime is None else func.now() + lifetime
    key = ApiKey(
        id=key_id, tenant=tenant, name=name, secret_sha256=hash_secret(secret), scopes=sorted(scopes), expires_at=expires_at
    )
    session.add(key)
    session.flush()
    return f"{PREFIX}_{key_id}_{secret}"


def authenticate(session: Session, token: str) -> Principal:
    """Find the principal of a token. Raises Unauthorized."""
    if TOKEN.fullmatch(token) is None:
        raise Unauthorized(INVALID)
    _, key_id, secret = token.split("_", 2)
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - USED_PRECISION).label("stale")
    query = select(ApiKey, Tenant, stale).join(Tenant, ApiKey.tenant == Tenant.id).where(ApiKey.id == key_id, *is_valid())
    found = session.execute(query).one_or_none()
    if found is None or not hmac.compare_digest(found.ApiKey.secret_sha256, hash_secret(secret)):
        raise Unauthorized(INVALID)
    if found.stale:
        record_use(session, found.ApiKey)
    return make_principal(found.ApiKey, found.Tenant)


def make_principal(key: ApiKey, tenant: Tenant) -> Principal:
    limits = {name: getattr(tenant, name) for name in ("requests_per_minute", "submits_per_minute", "max_streams")}
    return Principal(tenant=tenant.id, key=key.id, scopes=frozenset(map(Scope, key.scopes)), **limits)


def is_valid() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions of keys that are neither revoked nor expired."""
    return ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())


def record_use(session: Session, key: ApiKey) -> None:
    """Store when a key was used, unless the database takes no writes, as after a failover."""
    with suppress(InternalError), session.begin_nested():
        session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=func.now()))


def list_keys(session: Session, tenant: str | None = None) -> list[ApiKey]:
    """List all keys, or those of one tenant, by tenant and age."""
    query = select(ApiKey).order_by(ApiKey.tenant, ApiKey.created_at)
    return list(session.scalars(query if tenant is None else query.where(ApiKey.tenant == tenant)))


def get(session: Session, key_id: str) -> ApiKey:
    """Return a key by its id. Raises KeyNotFound."""
    key = session.get(ApiKey, key_id)
    if key is None:
        raise KeyNotFound(f"there is no key {key_id}")
    return key


def revoke(session: Session, key_id: str) -> ApiKey:
    """Make a key invalid; revoking it again changes nothing. Raises KeyNotFound."""
    key = get(session, key_id)
    key.revoked_at = key.revoked_at or session.scalar(select(func.now()))
    return key


def rotate(session: Session, key_id: str, grace: timedelta) -> str:
    """Create a key like this one, with the same lifetime, and return its token.

    The old key stays valid for the grace time, or until it expires anyway. Raises KeyNotFound, also for a key that is not valid.
    """
    key = session.scalar(select(ApiKey).where(ApiKey.id == key_id, *is_valid()))
    if key is None:
        raise KeyNotFound(f"there is no valid key {key_id}")
    lifetime = None if key.expires_at is None else key.expires_at - key.created_at
    ends = func.least(ApiKey.expires_at, func.now() + grace)  # least() ignores NULL
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(expires_at=ends))
    return create(session, key.tenant, key.name, [Scope(scope) for scope in key.scopes], lifetime)


def hash_secret(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
