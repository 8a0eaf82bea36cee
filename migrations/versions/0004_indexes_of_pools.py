"""index jobs by pool

Indexes are built beside running writes, outside any transaction: a build that was interrupted leaves an invalid index,
which goes first. The index that is dropped served the claims of the code before: until they are replaced, old workers
claim slower where many jobs wait.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

QUEUED = sa.text("state = 'queued'")
INDEXES: dict[str, tuple[list[str | sa.ColumnElement[Any]], sa.TextClause]] = {
    "ix_jobs_pool": (["pool", "tenant", sa.literal_column("priority DESC"), "seq"], QUEUED),
    "ix_jobs_running": (["tenant"], sa.text("state = 'running'")),
    "ix_jobs_untidy": (["finished_at"], sa.text("finished_at IS NOT NULL AND tidied_at IS NULL")),
    "ix_jobs_expires": (["expires_at"], sa.text("expires_at IS NOT NULL")),
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, (columns, where) in INDEXES.items():
            op.drop_index(name, "jobs", postgresql_concurrently=True, if_exists=True)
            op.create_index(name, "jobs", columns, postgresql_where=where, postgresql_concurrently=True)
        op.drop_index("ix_jobs_queued", "jobs", postgresql_concurrently=True, if_exists=True)


def downgrade() -> None:
    op.create_index("ix_jobs_queued", "jobs", ["tenant", sa.literal_column("priority DESC"), "seq"], postgresql_where=QUEUED)
    for name in INDEXES:
        op.drop_index(name, "jobs")
