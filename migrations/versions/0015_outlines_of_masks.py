"""keep outlines of masks, so that submissions are checked without their pixels"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("uploads", sa.Column("outline", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    op.drop_column("uploads", "outline")
