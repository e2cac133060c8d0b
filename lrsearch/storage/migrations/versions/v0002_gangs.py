"""Trials that train together: what each of them really took, beside what it would have taken alone."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("lrsearch_attempt", sa.Column("billed_phase_seconds", sa.JSON()))
