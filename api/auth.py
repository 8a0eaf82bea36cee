"""Who asks, what they may do, and how often."""

import hashlib
import logging
import time
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
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

REMEMBERED_S = 5.0  # a key: until then a revoked one is still let in, and a poll costs no query of its own
TRUSTED_S = 300.0  # a key that was valid, while the database is away
MOST_REMEMBERED = 10_000  # keys
BROKER_S = 1.0  # how long a request waits for the counters
REST_S = 10.0  # counters that did not answer are left alone for so long
READING = ("GET", "HEAD", "OPTIONS")
bearer = HTTPBearer(auto_error=False, description="An API key, dq_..., as `dragqueue keys create` prints it.")
logger = logging.getLogger(__name__)


class ApiKeyCache:
    """The keys seen lately."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.known: dict[bytes, tuple[Principal, float]] = {}  # by the token's hash: whose it is, when that was found

    def recall(self, token: str) -> Principal | None:
        """Whose key it is, if that was found a moment ago."""
        who, found = self.known.get(hashed(token), (None, 0.0))
        return who if time.monotonic() - found < REMEMBERED_S else None

    def principal(self, token: str) -> Principal:
        """Whose key it is. Raises Unauthorized; OperationalError while the database is away, of keys not known."""
        try:
            return self.ask(token)
        except (OperationalError, TimeoutError):
            who, found = self.known.get(hashed(token), (None, 0.0))
            if who is None or time.monotonic() - found > TRUSTED_S:
                raise
            return who

    def ask(self, token: str) -> Principal:
        try:
            with self.sessions.begin() as session:
                principal = keys.authenticate(session, token)
        except Unauthorized:
            self.known.pop(hashed(token), None)
            raise
        if len(self.known) >= MOST_REMEMBERED:
            self.known.clear()
        self.known[hashed(token)] = principal, time.monotonic()
        return principal


def hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class RateLimits:
    """Requests of each key a minute, counted in Redis. While that is away nobody is held up.

    A thousandth of what a key may make is taken at once, so that most requests do not ask.
    """

    def __init__(self, settings: Settings) -> None:
        url, waits = to_redis_py_url(settings.redis_url), {"socket_timeout": BROKER_S, "socket_connect_timeout": BROKER_S}
        self.connections = ConnectionPool.from_url(url, **waits)
        storage = RedisStorage("async+redis://", implementation="redispy", connection_pool=self.connections)  # type: ignore[arg-type]
        self.limiter = SlidingWindowCounterRateLimiter(storage)
        self.settings = settings
        self.resting_until = 0.0
        self.left: dict[tuple[str, str], int] = {}  # of what was taken, by what is counted and key

    async def close(self) -> None:
        await self.connections.aclose()

    async def count(self, who: Principal, *, submits: bool) -> None:
        """Raises RateLimited."""
        if time.monotonic() < self.resting_until:
            return
        try:
            await self.hit("requests", who.requests_per_minute or self.settings.requests_per_minute, who.key)
            if submits:
                await self.hit("submits", who.submits_per_minute or self.settings.submits_per_minute, who.key)
        except RedisError as error:
            self.resting_until = time.monotonic() + REST_S
            logger.warning("requests are not counted for %g s: %s", REST_S, error)

    async def hit(self, what: str, per_minute: int, key: str) -> None:
        taken = 0
        if self.left.get((what, key), 0) == 0:
            taken = max(1, per_minute // 1000)
            if not await self.limiter.hit(RateLimitItemPerMinute(per_minute), what, key, cost=taken):
                raise RateLimited(f"this key may make {per_minute} {what} a minute")
            if len(self.left) >= MOST_REMEMBERED:
                self.left.clear()
        self.left[what, key] = self.left.get((what, key), 0) + taken - 1  # others may have taken some background_thread


async def admit(request: Request, token: str, scope: Scope) -> Principal:
    """Raises Unauthorized, Forbidden, RateLimited."""
    ring: ApiKeyCache = request.app.state.api_key_cache
    who = ring.recall(token)
    if who is None:
        who = await run_in_threadpool(ring.principal, token)
    if not who.may(scope):
        raise Forbidden(f"this needs a key with the scope {scope}")
    await request.app.state.rate_limits.count(who, submits=request.method not in READING)
    return who


def needs(scope: Scope) -> Any:
    """A dependency: whoever holds a key with that scope."""

    async def principal(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> Principal:
        if credentials is None:
            raise Unauthorized("send a key: Authorization: Bearer dq_...")
        return await admit(request, credentials.credentials, scope)

    return Depends(principal)


Reader = Annotated[Principal, needs(Scope.READ)]
Submitter = Annotated[Principal, needs(Scope.SUBMIT)]
Admin = Annotated[Principal, needs(Scope.ADMIN)]
