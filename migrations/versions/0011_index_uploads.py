"""index uploads by their last use, beside running writes"""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("ix_uploads_used_at", "uploads", postgresql_concurrently=True, if_exists=True)
        op.create_index("ix_uploads_used_at", "uploads", ["used_at"], postgresql_concurrently=True)


def downgrade() -> None:
    op.drop_index("ix_uploads_used_at", "uploads")
