"""API keys: dq_ID_SECRET. The secret is 256 random bits, so that one round of SHA-256 is all its hash needs."""

import hashlib
import hmac
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
USED_PRECISION = timedelta(minutes=1)  # of last_used_at: a write for every request would be too many


class Scope(StrEnum):
    """What a key lets its holder do."""

    READ = "read"  # look at jobs, download
    SUBMIT = "submit"  # submit, upload, cancel, stop, retry, delete
    ADMIN = "admin"  # all of it; webhooks and the audit too


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks."""

    tenant: str
    key: str  # its id
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None  # None: what the settings say
    submits_per_minute: int | None = None
    max_streams: int | None = None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


def create(session: Session, tenant: str, name: str, scopes: Collection[Scope], lifetime: timedelta | None = None) -> str:
    """A new key of a tenant, which is made where there is none; returned once and never shown again."""
    session.execute(insert(Tenant).values(id=tenant).on_conflict_do_nothing())
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    expires_at = None if lifetime is None else func.now() + lifetime
    key = ApiKey(id=key_id, tenant=tenant, name=name, secret_sha256=digest(secret), scopes=sorted(scopes), expires_at=expires_at)
    session.add(key)
    session.flush()
    return f"{PREFIX}_{key_id}_{secret}"


def authenticate(session: Session, token: str) -> Principal:
    """Whose key it is. Raises Unauthorized."""
    prefix, _, rest = token.partition("_")
    key_id, _, secret = rest.partition("_")
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - USED_PRECISION).label("stale")
    query = select(ApiKey, Tenant, stale).join(Tenant, ApiKey.tenant == Tenant.id).where(ApiKey.id == key_id, *valid())
    found = session.execute(query).one_or_none() if prefix == PREFIX and key_id.isalnum() else None
    if found is None or not hmac.compare_digest(found.ApiKey.secret_sha256, digest(secret)):
        raise Unauthorized("the key is not valid, has expired or was revoked")
    if found.stale:
        note_use(session, found.ApiKey)
    return principal_of(found.ApiKey, found.Tenant)


def principal_of(key: ApiKey, tenant: Tenant) -> Principal:
    limits = {name: getattr(tenant, name) for name in ("requests_per_minute", "submits_per_minute", "max_streams")}
    return Principal(tenant=tenant.id, key=key.id, scopes=frozenset(map(Scope, key.scopes)), **limits)


def valid() -> tuple[ColumnElement[bool], ...]:
    return ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())


def note_use(session: Session, key: ApiKey) -> None:
    """Unless the database takes no writes, as after a failover."""
    with suppress(InternalError), session.begin_nested():
        session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=func.now()))


def listed(session: Session, tenant: str | None = None) -> list[ApiKey]:
    """By tenant and age; all of them, or one tenant's."""
    query = select(ApiKey).order_by(ApiKey.tenant, ApiKey.created_at)
    return list(session.scalars(query if tenant is None else query.where(ApiKey.tenant == tenant)))


def get(session: Session, key_id: str) -> ApiKey:
    """Raises KeyNotFound."""
    key = session.get(ApiKey, key_id)
    if key is None:
        raise KeyNotFound(f"there is no key {key_id}")
    return key


def revoke(session: Session, key_id: str) -> ApiKey:
    """Make a key invalid; again changes nothing. Raises KeyNotFound."""
    key = get(session, key_id)
    key.revoked_at = key.revoked_at or session.scalar(select(func.now()))
    return key


def rotate(session: Session, key_id: str, grace: timedelta) -> str:
    """A key like this one, which stays valid for the grace time, or until it expires anyway: so does what replaces a key
    that expires. Raises KeyNotFound, also for a key that is not valid.
    """
    key = session.scalar(select(ApiKey).where(ApiKey.id == key_id, *valid()))
    if key is None:
        raise KeyNotFound(f"there is no valid key {key_id}")
    lifetime = None if key.expires_at is None else key.expires_at - key.created_at
    ends = func.least(ApiKey.expires_at, func.now() + grace)  # which ignores NULL
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(expires_at=ends))
    return create(session, key.tenant, key.name, [Scope(scope) for scope in key.scopes], lifetime)


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
