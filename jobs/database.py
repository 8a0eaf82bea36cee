"""Connections to Postgres."""

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

MAX_CONNECTIONS, IDLE_CONNECTIONS = 15, 5
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 30_000
# A host that is gone closes no connection; with these values the kernel gives it up after 10 + 3 * 5 s.
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}


def make_engine(database_url: str, connections: int = MAX_CONNECTIONS) -> Engine:
    """Make an engine whose waits all have a time limit. Call it after a fork, never before.

    Args:
        connections: the most connections that may be open at once.
    """
    options = f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout=10000 -c idle_in_transaction_session_timeout=60000"
    connect_args = {"connect_timeout": CONNECT_TIMEOUT_S, "options": options} | KEEPALIVE
    overflow = max(0, connections - IDLE_CONNECTIONS)
    return create_engine(
        database_url, pool_pre_ping=True, pool_size=IDLE_CONNECTIONS, max_overflow=overflow, connect_args=connect_args
    )


def make_sessions(database_url: str, connections: int = MAX_CONNECTIONS) -> Sessions:
    """Make a factory of sessions over an engine of its own."""
    return sessionmaker(make_engine(database_url, connections), expire_on_commit=False)
