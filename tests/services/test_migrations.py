from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from jobs.database import make_engine
from migrations.upgrade import alembic_config, upgrade


def tables(url):
    engine = make_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_migrations_go_up_down_and_up_again(empty_database):
    upgrade(empty_database)
    assert {"jobs", "artifacts", "tenants"} <= tables(empty_database)
    command.downgrade(alembic_config(empty_database), "base")
    assert tables(empty_database) == {"alembic_version"}
    upgrade(empty_database)


def test_migrations_make_exactly_what_the_models_say(settings):
    command.check(alembic_config(settings.database_url))


def test_there_is_one_head(settings):
    assert len(ScriptDirectory.from_config(alembic_config(settings.database_url)).get_heads()) == 1
