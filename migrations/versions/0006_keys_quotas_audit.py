"""add API keys, quotas of tenants and the audit"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

LIMITS = {
    "max_queued": sa.Integer(),
    "max_uploads": sa.Integer(),
    "max_stored_bytes": sa.BigInteger(),
    "max_streams": sa.Integer(),
    "requests_per_minute": sa.Integer(),
    "submits_per_minute": sa.Integer(),
}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name, kind in LIMITS.items():
        op.add_column("tenants", sa.Column(name, kind, nullable=True))
    op.add_column("tenants", sa.Column("stored_bytes", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("tenants", sa.Column("measured_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_api_keys_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index(op.f("ix_api_keys_tenant"), "api_keys", ["tenant"])
    op.create_table(
        "audit_lines",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit_lines")),
    )
    op.create_index(op.f("ix_audit_lines_at"), "audit_lines", ["at"])
    op.create_index("ix_audit_lines_tenant_seq", "audit_lines", ["tenant", "seq"])


def downgrade() -> None:
    op.drop_table("audit_lines")
    op.drop_table("api_keys")
    for name in ("measured_at", "stored_bytes", *LIMITS):
        op.drop_column("tenants", name)
