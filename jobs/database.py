"""Connections to Postgres."""

from pydantic_core import from_json
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

MAX_CONNECTIONS, IDLE_CONNECTIONS = 15, 5
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS, LOCK_TIMEOUT_MS = 30_000, 10_000
# A host that is gone closes no connection; with these values the kernel gives it up after 10 + 3 * 5 s.
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}


def make_engine(
    database_url: str, connections: int = MAX_CONNECTIONS, lock_timeout_ms: int = LOCK_TIMEOUT_MS, idle: int = IDLE_CONNECTIONS
) -> Engine:
    """Make an engine whose waits all have a time limit. Call it after a fork, never before.

    Args:
        connections: the most connections that may be open at once.
        idle: how many of them stay open while nobody uses them; opening one costs more than most queries.
        lock_timeout_ms: how long a statement waits for a row that another transaction holds.
    """
    limits = {
        "statement_timeout": STATEMENT_TIMEOUT_MS,
        "lock_timeout": lock_timeout_ms,
        "idle_in_transaction_session_timeout": 60_000,
    }
    options = " ".join(f"-c {name}={milliseconds}" for name, milliseconds in limits.items())
    connect_args = {"connect_timeout": CONNECT_TIMEOUT_S, "options": options} | KEEPALIVE
    overflow = max(0, connections - idle)
    return create_engine(
        database_url, pool_pre_ping=True, pool_size=idle, max_overflow=overflow, connect_args=connect_args,
        json_deserializer=from_json,  # of pydantic: a spec of 64 polygons takes 6 ms in place of 45
    )  # fmt: skip


def make_sessions(
    database_url: str, connections: int = MAX_CONNECTIONS, lock_timeout_ms: int = LOCK_TIMEOUT_MS, idle: int = IDLE_CONNECTIONS
) -> Sessions:
    """Make a factory of sessions over an engine of its own."""
    return sessionmaker(make_engine(database_url, connections, lock_timeout_ms, idle), expire_on_commit=False)
