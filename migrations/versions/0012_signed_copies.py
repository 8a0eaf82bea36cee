"""note which jobs' results have signed copies, and index those that have none; beside running writes"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

UNSIGNED = sa.text("state = 'succeeded' AND signed_at IS NULL")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    tries = sa.Column("sign_tries", sa.Integer(), server_default="0", nullable=False)
    for column in (sa.Column("signed_at", sa.DateTime(timezone=True)), tries):
        op.add_column("jobs", column, if_not_exists=True)  # there already where the index was broken off
    with op.get_context().autocommit_block():
        op.drop_index("ix_jobs_unsigned", "jobs", postgresql_concurrently=True, if_exists=True)
        op.create_index("ix_jobs_unsigned", "jobs", ["finished_at"], postgresql_where=UNSIGNED, postgresql_concurrently=True)


def downgrade() -> None:
    op.drop_index("ix_jobs_unsigned", "jobs")
    for name in ("sign_tries", "signed_at"):
        op.drop_column("jobs", name)
