"""Alembic's entry: runs migrations on the database of the settings, or on the connection it is handed."""

from alembic import context
from sqlalchemy import text

from jobs.database import make_engine
from jobs.models import Base
from jobs.settings import Settings

ONE_AT_A_TIME = 7_346_812  # the advisory lock of migrations; released with the connection


def run() -> None:
    url = context.config.attributes.get("database_url")
    engine = make_engine(url or Settings().database_url)  # type: ignore[call-arg]
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ONE_AT_A_TIME})
        connection.commit()
        context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
