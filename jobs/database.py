"""How processes reach Postgres."""

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

CONNECTIONS, KEPT = 15, 5  # at once, and when idle
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 30_000
# a server whose host is gone says nothing: the kernel gives its connections up after 10 + 3 * 5 s
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}


def make_engine(database_url: str, connections: int = CONNECTIONS) -> Engine:
    """An engine whose waits are all finite. Make it after a fork, never before.

    Args:
        connections: open at once, at most.
    """
    options = f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout=10000 -c idle_in_transaction_session_timeout=60000"
    connect_args = {"connect_timeout": CONNECT_TIMEOUT_S, "options": options} | KEEPALIVE
    more = max(0, connections - KEPT)
    return create_engine(database_url, pool_pre_ping=True, pool_size=KEPT, max_overflow=more, connect_args=connect_args)


def make_sessions(database_url: str, connections: int = CONNECTIONS) -> Sessions:
    return sessionmaker(make_engine(database_url, connections), expire_on_commit=False)
