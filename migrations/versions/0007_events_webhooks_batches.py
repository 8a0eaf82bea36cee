"""add events, webhooks with their deliveries, and batches

A trigger writes the events: every way a job changes its state is told, in the transaction that changes it, whoever's code
that is. Old code that still runs is told of too.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"

JSON = postgresql.JSONB(astext_type=sa.Text())
TELL = """
CREATE FUNCTION dragqueue_tell() RETURNS trigger LANGUAGE plpgsql AS $$
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
        SELECT id, NEW.id, told, said || jsonb_strip_nulls(jsonb_build_object(
            'job', NEW.id, 'model', NEW.model, 'batch', NEW.batch, 'custom_id', NEW.custom_id,
            'metadata', NEW.spec -> 'metadata'))
        FROM webhooks
        WHERE tenant = NEW.tenant AND disabled_at IS NULL AND told = ANY (events)
            AND (every_job OR NEW.spec -> 'webhooks' ? id::text);
    RETURN NULL;
END $$
"""
TRIGGER = """
CREATE TRIGGER tell AFTER INSERT OR UPDATE OF state, cancel_requested_at, stop_requested_at ON jobs
    FOR EACH ROW EXECUTE FUNCTION dragqueue_tell()
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("custom_id", sa.Text(), nullable=True))
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", JSON, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_events")),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("every_job", sa.Boolean(), nullable=False),
        sa.Column("secrets", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_webhooks_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_webhooks_tenant"), "webhooks", ["tenant"])
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("webhook", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", JSON, nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name=op.f("ck_deliveries_state")),
        sa.ForeignKeyConstraint(["webhook"], ["webhooks.id"], name=op.f("fk_deliveries_webhook"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index("ix_deliveries_due", "deliveries", ["next_at"], postgresql_where=sa.text("state = 'pending'"))
    op.create_index("ix_deliveries_webhook", "deliveries", ["webhook", sa.literal_column("created_at DESC")])
    op.create_index(op.f("ix_deliveries_ended_at"), "deliveries", ["ended_at"])
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_batches_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_tenant_seq", "batches", ["tenant", "seq"])
    op.create_table(
        "refusals",
        sa.Column("batch", sa.Uuid(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("problems", JSON, nullable=False),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name=op.f("fk_refusals_batch"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("batch", "line", name=op.f("pk_refusals")),
    )
    op.execute(TELL)
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER tell ON jobs")
    op.execute("DROP FUNCTION dragqueue_tell")
    for table in ("refusals", "batches", "deliveries", "webhooks", "events"):
        op.drop_table(table)
    op.drop_column("jobs", "custom_id")
