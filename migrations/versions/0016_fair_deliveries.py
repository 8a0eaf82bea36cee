"""measure how long webhooks take to answer, and count the tests and redeliveries that tenants ask for"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("webhooks", sa.Column("answer_s", sa.Float(), nullable=True))
    op.add_column("tenants", sa.Column("manual_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("tenants", "manual_until")
    op.drop_column("webhooks", "answer_s")
