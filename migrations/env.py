"""Alembic's entry: runs migrations on the database of the settings, or on the connection it is handed."""

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from jobs.database import CONNECT_TIMEOUT_S
from jobs.settings import Settings
from jobs.tables import Base

ONE_AT_A_TIME = 7_346_812  # the advisory lock of migrations; released with the connection


def run() -> None:
    url = context.config.attributes.get("database_url")
    url = url or Settings().database_url  # type: ignore[call-arg]  # from the environment
    # none of the service's limits: an index may take long to build, another migration long to finish
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ONE_AT_A_TIME})
        connection.commit()
        context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
