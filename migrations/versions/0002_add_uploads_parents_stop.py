"""add uploads; jobs know their parent, their root and whether to stop"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "uploads",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('image', 'mask', 'latent')", name=op.f("ck_uploads_kind")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_uploads_tenant")),
        sa.PrimaryKeyConstraint("tenant", "sha256", name=op.f("pk_uploads")),
    )
    op.add_column("jobs", sa.Column("stop_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("parent", sa.Uuid(), nullable=True))
    op.add_column("jobs", sa.Column("root", sa.Uuid(), nullable=True))
    op.create_foreign_key(op.f("fk_jobs_parent"), "jobs", "jobs", ["parent"], ["id"], ondelete="SET NULL")
    op.create_index(op.f("ix_jobs_parent"), "jobs", ["parent"])


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_parent"), "jobs")
    op.drop_constraint(op.f("fk_jobs_parent"), "jobs")
    for name in ("root", "parent", "stop_requested_at"):
        op.drop_column("jobs", name)
    op.drop_table("uploads")
