"""Authentication by API key, authorization by scope, and rate limits."""

import hashlib
import logging
import time
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis import RedisError
from redis.asyncio import ConnectionPool
from sqlalchemy.exc import OperationalError, TimeoutError

from jobs.database import Sessions
from jobs.errors import Forbidden, RateLimited, Unauthorized
from jobs.queue.broker import to_redis_py_url
from jobs.settings import Settings
from jobs.tenants import keys
from jobs.tenants.keys import Principal, Scope

CACHED_S = 5.0  # a key: until then a revoked one is still let in, and a poll costs no query of its own
TRUSTED_S = 300.0  # a key that was valid, while the database is away
MAX_ENTRIES = 10_000  # keys in a cache
KNOWN_THREADS, UNKNOWN_THREADS = 2, 2  # in which keys are looked up
BROKER_TIMEOUT_S = 1.0  # how long a request waits for the counters
BROKER_PAUSE_S = 10.0  # how long counters that did not answer are left alone
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
bearer = HTTPBearer(auto_error=False, description="An API key, dq_..., as `dragqueue keys create` prints it.")
logger = logging.getLogger(__name__)


class ApiKeyCache:
    """The principals of the API keys seen lately."""

    def __init__(self, sessions: Sessions, cached_s: float = CACHED_S) -> None:
        """Create an empty cache.

        Args:
            cached_s: how long a key is taken for valid without a query.
        """
        self.sessions = sessions
        self.cached_s = cached_s
        self.entries: dict[bytes, tuple[Principal, float]] = {}  # by the token's hash: its principal, and since when
        self.known, self.unknown = CapacityLimiter(KNOWN_THREADS), CapacityLimiter(UNKNOWN_THREADS)

    async def authenticate(self, token: str) -> Principal:
        """Return the principal of a key: from the cache for a while, and as long as the database is away.

        Keys that were valid lately do not wait for those that nobody has seen.

        Raises:
            Unauthorized: the key is not valid.
            OperationalError, TimeoutError: the database is away, and the key was not seen lately.
        """
        principal, age_s = self.find(token)
        if principal is None:
            if keys.TOKEN.fullmatch(token) is None:
                raise Unauthorized(keys.INVALID)
            return await to_thread.run_sync(self.query, token, limiter=self.unknown)
        if age_s < self.cached_s:
            return principal
        try:
            return await to_thread.run_sync(self.refresh, token, limiter=self.known)
        except (OperationalError, TimeoutError):
            if age_s > TRUSTED_S:
                raise
            return principal

    def find(self, token: str) -> tuple[Principal | None, float]:
        """Return the principal of a key that was valid lately, and how many seconds ago."""
        principal, since = self.entries.get(hash_token(token), (None, 0.0))
        return principal, time.monotonic() - since

    def refresh(self, token: str) -> Principal:
        """Authenticate a known key, unless another request has done so while this one waited. Raises Unauthorized."""
        principal, age_s = self.find(token)
        return principal if principal is not None and age_s < self.cached_s else self.query(token)

    def query(self, token: str) -> Principal:
        """Authenticate a key by the database, and cache its principal. Raises Unauthorized."""
        try:
            with self.sessions.begin() as session:
                principal = keys.authenticate(session, token)
        except Unauthorized:
            self.entries.pop(hash_token(token), None)
            raise
        if len(self.entries) >= MAX_ENTRIES:
            self.entries.clear()
        self.entries[hash_token(token)] = principal, time.monotonic()
        return principal


def hash_token(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class RateLimits:
    """The requests of each key in a minute, counted in Redis. While Redis is away nothing is counted.

    A process takes a thousandth of a key's limit at once, so that most requests do not ask Redis.
    """

    def __init__(self, settings: Settings) -> None:
        timeouts = {"socket_timeout": BROKER_TIMEOUT_S, "socket_connect_timeout": BROKER_TIMEOUT_S}
        self.connections = ConnectionPool.from_url(to_redis_py_url(settings.redis_url), **timeouts)
        storage = RedisStorage("async+redis://", implementation="redispy", connection_pool=self.connections)  # type: ignore[arg-type]
        self.limiter = SlidingWindowCounterRateLimiter(storage)
        self.settings = settings
        self.paused_until = 0.0
        self.left: dict[tuple[str, str], int] = {}  # of what was taken, by what is counted and key

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self.connections.aclose()

    async def count(self, principal: Principal, *, submits: bool) -> None:
        """Count a request. Raises RateLimited."""
        if time.monotonic() < self.paused_until:
            return
        try:
            await self.hit("requests", principal.requests_per_minute or self.settings.requests_per_minute, principal.key)
            if submits:
                await self.hit("submits", principal.submits_per_minute or self.settings.submits_per_minute, principal.key)
        except RedisError as error:
            self.paused_until = time.monotonic() + BROKER_PAUSE_S
            logger.warning("requests are not counted for %g s: %s", BROKER_PAUSE_S, error)

    async def hit(self, counter: str, per_minute: int, key: str) -> None:
        """Count a request by one counter of a key. Raises RateLimited."""
        taken = 0
        if self.left.get((counter, key), 0) == 0:
            taken = max(1, per_minute // 1000)
            if not await self.limiter.hit(RateLimitItemPerMinute(per_minute), counter, key, cost=taken):
                raise RateLimited(f"this key may make {per_minute} {counter} a minute")
            if len(self.left) >= MAX_ENTRIES:
                self.left.clear()
        # read again: other requests may have taken some while this one awaited Redis
        self.left[counter, key] = self.left.get((counter, key), 0) + taken - 1


async def authorize(request: Request, scope: Scope) -> Principal:
    """Return the principal of a request whose key has the scope, and count the request.

    Raises:
        Unauthorized, RateLimited, Forbidden.
    """
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise Unauthorized("send a key: Authorization: Bearer dq_...")
    cache: ApiKeyCache = request.app.state.api_key_cache
    principal = await cache.authenticate(token.strip())
    await request.app.state.rate_limits.count(principal, submits=request.method not in SAFE_METHODS)
    if not principal.may(scope):
        raise Forbidden(f"this needs a key with the scope {scope}")
    return principal


class RequiredScope:
    """The dependency that gives a route its principal. The route class reads the scope and authorizes before anything else."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> Principal:
        """Return the principal that was authorized."""
        principal: Principal = request.state.principal
        return principal


Reader = Annotated[Principal, Depends(RequiredScope(Scope.READ))]
Submitter = Annotated[Principal, Depends(RequiredScope(Scope.SUBMIT))]
Admin = Annotated[Principal, Depends(RequiredScope(Scope.ADMIN))]
