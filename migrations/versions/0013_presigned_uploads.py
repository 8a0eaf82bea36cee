"""add uploads whose bytes go straight to the store"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "presigned_uploads",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("upload", sa.Text(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name=op.f("fk_presigned_uploads_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_presigned_uploads")),
    )
    op.create_index(op.f("ix_presigned_uploads_tenant"), "presigned_uploads", ["tenant"])
    op.create_index(op.f("ix_presigned_uploads_expires_at"), "presigned_uploads", ["expires_at"])


def downgrade() -> None:
    op.drop_table("presigned_uploads")
