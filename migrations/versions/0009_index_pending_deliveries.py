"""index the deliveries that wait by webhook: one with many to catch up with must not slow down the others' claims"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

PENDING = sa.text("state = 'pending'")


def upgrade() -> None:
    replace("ix_deliveries_due", by="ix_deliveries_pending", columns=["webhook", "next_at"])


def downgrade() -> None:
    replace("ix_deliveries_pending", by="ix_deliveries_due", columns=["next_at"])


def replace(old: str, *, by: str, columns: list[str]) -> None:
    with op.get_context().autocommit_block():
        op.drop_index(by, "deliveries", postgresql_concurrently=True, if_exists=True)
        op.create_index(by, "deliveries", columns, postgresql_where=PENDING, postgresql_concurrently=True)
        op.drop_index(old, "deliveries", postgresql_concurrently=True, if_exists=True)
