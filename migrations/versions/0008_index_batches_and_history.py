"""index jobs by batch, and those that succeeded by model; beside running writes"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

INDEXES = {
    "ix_jobs_batch": (["batch", "seq"], sa.text("batch IS NOT NULL")),
    "ix_jobs_succeeded": (["model", "finished_at"], sa.text("state = 'succeeded'")),
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, (columns, where) in INDEXES.items():
            op.drop_index(name, "jobs", postgresql_concurrently=True, if_exists=True)
            op.create_index(name, "jobs", columns, postgresql_where=where, postgresql_concurrently=True)


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, "jobs")
