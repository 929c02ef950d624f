"""What safety checks found in calls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "audits",
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("policy", sa.String(length=100), nullable=False),
        sa.Column("judges", sa.String(length=500), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("categories", sa.String(length=500), nullable=False),
        sa.Column("score", sa.Float(precision=53), nullable=False),
        sa.Column("n_checks", sa.BigInteger(), nullable=False),
        sa.Column("judge_s", sa.Float(precision=53), nullable=False),
        sa.Column("n_withheld", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.String(length=300), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_audits")),
    )
    op.create_index(op.f("ix_audits_action"), "audits", ["action"], unique=False)
