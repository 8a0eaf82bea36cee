"""How processes reach Postgres."""

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 30_000


def make_engine(database_url: str) -> Engine:
    """An engine whose waits are all finite. Make it after a fork, never before."""
    options = f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout=10000 -c idle_in_transaction_session_timeout=60000"
    return create_engine(
        database_url, pool_pre_ping=True, pool_size=5, connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "options": options}
    )


def make_sessions(database_url: str) -> Sessions:
    return sessionmaker(make_engine(database_url), expire_on_commit=False)
