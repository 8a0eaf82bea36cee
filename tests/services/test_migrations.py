from uuid import UUID

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

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


WEBHOOK = """
    INSERT INTO webhooks (id, tenant, url, events, every_job, secrets)
        VALUES (gen_random_uuid(), 'default', 'https://a.test', '{job.queued}', true, '{}')
"""
ADD_JOB = """
    INSERT INTO jobs (id{column}, tenant, model, spec, priority) VALUES (gen_random_uuid(){value}, 'default', 'm', '{{}}', 0)
    RETURNING id
"""


def test_deliveries_name_a_job_by_its_chosen_id_where_it_has_one_while_the_migration_of_ids_is_in_force(empty_database):
    chosen = UUID(int=17)
    engine = make_engine(empty_database)
    command.upgrade(alembic_config(empty_database), "0014")
    with engine.begin() as connection:
        connection.execute(text(WEBHOOK))
        expected = [connection.scalar(text(ADD_JOB.format(column="", value="")))]  # of code that knows no chosen ids
    upgrade(empty_database)
    with engine.begin() as connection:
        expected.append(connection.scalar(text(ADD_JOB.format(column="", value=""))))
        connection.execute(text(ADD_JOB.format(column=", client_id", value=f", '{chosen}'")))
    command.downgrade(alembic_config(empty_database), "0014")
    with engine.begin() as connection:
        expected += [chosen, connection.scalar(text(ADD_JOB.format(column="", value="")))]
        told = connection.execute(text("SELECT job_id, (data ->> 'job')::uuid FROM deliveries ORDER BY created_at")).all()
    engine.dispose()
    assert told == [(job_id, job_id) for job_id in expected]


def test_migrations_make_exactly_what_the_models_say(settings):
    command.check(alembic_config(settings.database_url))


def test_there_is_one_head(settings):
    assert len(ScriptDirectory.from_config(alembic_config(settings.database_url)).get_heads()) == 1
