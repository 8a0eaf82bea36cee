"""tell attempts that share their process from those that run alone"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("together", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("jobs", sa.Column("alone", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    op.drop_column("jobs", "alone")
    op.drop_column("jobs", "together")
