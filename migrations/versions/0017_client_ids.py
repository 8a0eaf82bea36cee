"""keep the ids that clients choose apart from those of the rows, unique for each tenant; beside running writes"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

COLUMNS = ("client_id", "parent_client_id", "root_client_id")
CHOSEN = sa.text("client_id IS NOT NULL")
TELL = """
CREATE OR REPLACE FUNCTION dragqueue_tell() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    told text;
    said jsonb;
BEGIN
    IF TG_OP = 'INSERT' OR NEW.state <> OLD.state THEN
        told := 'job.' || NEW.state;
    ELSIF NEW.cancel_requested_at IS NOT NULL AND OLD.cancel_requested_at IS NULL THEN
        told := 'job.cancel_requested';
    ELSIF NEW.stop_requested_at IS NOT NULL AND OLD.stop_requested_at IS NULL THEN
        told := 'job.stop_requested';
    ELSE
        RETURN NULL;
    END IF;
    said := jsonb_strip_nulls(jsonb_build_object(
        'state', NEW.state, 'attempt', NEW.attempt, 'stop_reason', NEW.stop_reason,
        'error_code', NEW.error_code, 'error_message', NEW.error_message));
    INSERT INTO events (job_id, type, data) VALUES (NEW.id, told, said);
    INSERT INTO deliveries (webhook, job_id, type, data)
        SELECT id, {public_id}, told, said || jsonb_strip_nulls(jsonb_build_object(
            'job', {public_id}, 'model', NEW.model, 'batch', NEW.batch, 'custom_id', NEW.custom_id,
            'metadata', NEW.spec -> 'metadata'))
        FROM webhooks
        WHERE tenant = NEW.tenant AND disabled_at IS NULL AND told = ANY (events)
            AND (every_job OR NEW.spec -> 'webhooks' ? id::text);
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name in COLUMNS:
        op.add_column("jobs", sa.Column(name, sa.Uuid(), nullable=True), if_not_exists=True)
    op.execute(TELL.format(public_id="coalesce(NEW.client_id, NEW.id)"))
    with op.get_context().autocommit_block():
        op.drop_index("ix_jobs_tenant_client_id", "jobs", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            "ix_jobs_tenant_client_id", "jobs", ["tenant", "client_id"], unique=True, postgresql_where=CHOSEN,
            postgresql_concurrently=True,
        )  # fmt: skip


def downgrade() -> None:
    op.drop_index("ix_jobs_tenant_client_id", "jobs")
    op.execute(TELL.format(public_id="NEW.id"))
    for name in COLUMNS:
        op.drop_column("jobs", name)
