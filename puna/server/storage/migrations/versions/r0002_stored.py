"""Files, batches, conversations and responses belong to tenants, and items are rows of their own.

Nothing wrote these tables before, so they are made anew.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for name in ("conversation_items", "conversations", "responses", "files", "batches"):
        op.drop_table(name)
    _files()
    _batches()
    _batch_lines()
    _conversations()
    _responses()


def _text(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON(none_as_null=True), nullable=nullable)


def _indexed(table: str, *columns: str) -> None:
    for column in columns:
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column], unique=False)


def _files() -> None:
    op.create_table(
        "files",
        _text("id", 64),
        _text("key_id", 64),
        _text("tenant", 200),
        _text("filename", 500),
        _text("purpose", 64),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        _time("created_at"),
        _time("expires_at"),
        _text("status", 32),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    _indexed("files", "key_id", "tenant", "expires_at")


def _batches() -> None:
    op.create_table(
        "batches",
        _text("id", 64),
        _text("key_id", 64),
        _text("tenant", 200),
        _text("endpoint", 200),
        _text("input_file_id", 64),
        _text("output_file_id", 64, nullable=True),
        _text("error_file_id", 64, nullable=True),
        _text("status", 32),
        sa.Column("n_total", sa.Integer(), nullable=False),
        sa.Column("n_completed", sa.Integer(), nullable=False),
        sa.Column("n_failed", sa.Integer(), nullable=False),
        _json("request"),
        _json("models"),
        _json("errors", nullable=True),
        _json("usage", nullable=True),
        _time("created_at"),
        _time("in_progress_at", nullable=True),
        _time("finalizing_at", nullable=True),
        _time("completed_at", nullable=True),
        _time("failed_at", nullable=True),
        _time("cancelling_at", nullable=True),
        _time("cancelled_at", nullable=True),
        _time("expires_at"),
        _time("expired_at", nullable=True),
        _text("owner", 64, nullable=True),
        _time("owned_until", nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    _indexed("batches", "key_id", "tenant", "input_file_id", "status")


def _batch_lines() -> None:
    op.create_table(
        "batch_lines",
        _text("batch_id", 64),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("is_good", sa.Boolean(), nullable=False),
        _json("result"),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["batches.id"], name=op.f("fk_batch_lines_batch_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("batch_id", "number", name=op.f("pk_batch_lines")),
    )


def _conversations() -> None:
    op.create_table(
        "conversations",
        _text("id", 64),
        _text("key_id", 64),
        _text("tenant", 200),
        _time("created_at"),
        _time("updated_at"),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        _json("metadata"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
    )
    _indexed("conversations", "key_id", "tenant", "updated_at")
    op.create_table(
        "conversation_items",
        _text("conversation_id", 64),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        _text("id", 64),
        _time("created_at"),
        _json("item"),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name=op.f("fk_conversation_items_conversation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("conversation_id", "position", name=op.f("pk_conversation_items")),
    )
    _indexed("conversation_items", "id")


def _responses() -> None:
    op.create_table(
        "responses",
        _text("id", 64),
        _text("key_id", 64),
        _text("tenant", 200),
        _time("created_at"),
        _text("previous_id", 64, nullable=True),
        _text("conversation_id", 64, nullable=True),
        _json("response"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_responses")),
    )
    _indexed("responses", "key_id", "tenant", "created_at")
    op.create_table(
        "response_items",
        _text("response_id", 64),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        _text("id", 64),
        sa.Column("is_output", sa.Boolean(), nullable=False),
        _json("item"),
        sa.ForeignKeyConstraint(
            ["response_id"],
            ["responses.id"],
            name=op.f("fk_response_items_response_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("response_id", "position", name=op.f("pk_response_items")),
    )
    _indexed("response_items", "id")
