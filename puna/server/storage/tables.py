"""The tables. A change here needs a step in migrations/versions/, which a test compares with this file.

Times are UTC, to the microsecond. Ids that clients see (file-…, batch_…, resp_…, conv_…) are primary keys;
`tenant` says whose a thing is, `key_id` who made it; both are empty without a key. `key_id` is no foreign
key: the ledger has to take a row whatever has become of its key.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A datetime with time zone UTC, on databases that know no zones, too."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert value.tzinfo is not None, "times have a zone"
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Id(TypeDecorator[str]):
    """An id. Clients ask for ids of their own invention: one that no database would take is no row's."""

    impl = String(64)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or (value.isascii() and value.isprintable()):
            return value
        return ""


def _id() -> Column[str]:
    return Column("id", Id(), primary_key=True)


def _key_id() -> Column[str]:
    return Column("key_id", String(64), nullable=False, default="", index=True)


def _tenant() -> Column[str]:
    return Column("tenant", String(200), nullable=False, default="", index=True)


def _time(name: str, *, nullable: bool = False, index: bool = False) -> Column[datetime]:
    return Column(name, UtcDateTime(), nullable=nullable, index=index)


def _json(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, JSON(none_as_null=True), nullable=nullable)


api_keys = Table(
    "api_keys",
    metadata,
    _id(),
    Column("digest", LargeBinary(32), nullable=False, unique=True),  # SHA-256 of the key
    Column("prefix", String(16), nullable=False),  # its first letters, to recognise it by
    Column("name", String(200), nullable=False),
    Column("tenant", String(200), nullable=False, index=True),
    _json("scopes"),
    _json("limits"),
    _time("created_at"),
    _time("expires_at", nullable=True),
    _time("revoked_at", nullable=True),
)

usage = Table(
    "usage",
    metadata,
    Column("request_id", String(128), primary_key=True),
    _time("created_at"),
    Column("day", Date(), nullable=False),  # of created_at, in UTC
    Column("key_id", String(64), nullable=False),  # "" without key
    Column("tenant", String(200), nullable=False),
    Column("model", String(300), nullable=False),
    Column("endpoint", String(200), nullable=False),
    Column("prompt_tokens", BigInteger(), nullable=False),
    Column("cached_tokens", BigInteger(), nullable=False),
    Column("output_tokens", BigInteger(), nullable=False),
    Column("queue_s", Float(53), nullable=False),
    Column("prefill_s", Float(53), nullable=False),
    Column("decode_s", Float(53), nullable=False),
    Column("status", String(16), nullable=False),
    Column("finish_reason", String(200), nullable=False),
    Column("cost_nano", BigInteger(), nullable=False),  # billionths of a dollar
    Index(None, "created_at", "request_id"),
    Index(None, "tenant", "created_at"),
    Index(None, "key_id", "day"),
)

audits = Table(  # of safety checks: a row of these belongs to the one of usage with the same id
    "audits",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("policy", String(100), nullable=False),
    Column("judges", String(500), nullable=False),
    Column("action", String(16), nullable=False, index=True),
    Column("stage", String(16), nullable=False),
    Column("categories", String(500), nullable=False),
    Column("score", Float(53), nullable=False),
    Column("n_checks", BigInteger(), nullable=False),
    Column("judge_s", Float(53), nullable=False),
    Column("n_withheld", BigInteger(), nullable=False),
    Column("error", String(300), nullable=False),
)

files = Table(
    "files",
    metadata,
    _id(),  # also the name of its content in the folder of files
    _key_id(),
    _tenant(),
    Column("filename", String(500), nullable=False),  # what the client calls it; never part of a path
    Column("purpose", String(64), nullable=False),
    Column("n_bytes", BigInteger(), nullable=False),
    _time("created_at"),
    _time("expires_at", index=True),
    Column("status", String(32), nullable=False),
)

batches = Table(
    "batches",
    metadata,
    _id(),
    _key_id(),  # whom its lines are charged to
    _tenant(),
    Column("endpoint", String(200), nullable=False),
    Column("input_file_id", String(64), nullable=False, index=True),
    Column("output_file_id", String(64), nullable=True),
    Column("error_file_id", String(64), nullable=True),
    Column("status", String(32), nullable=False, index=True),
    Column("n_total", Integer(), nullable=False, default=0),
    Column("n_completed", Integer(), nullable=False, default=0),
    Column("n_failed", Integer(), nullable=False, default=0),
    _json("request"),  # completion_window, metadata, output_expires_after
    _json("models"),  # that its lines name, once they are checked
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
    Column("owner", String(64), nullable=True),  # the server that runs it
    _time("owned_until", nullable=True),  # from then on another one may
)

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(64), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer(), primary_key=True, autoincrement=False),  # of the line in the file, from 1
    Column("is_good", Boolean(), nullable=False),  # goes to the output file, else to that of errors
    _json("result"),  # the line of that file
)

conversations = Table(
    "conversations",
    metadata,
    _id(),
    _key_id(),
    _tenant(),
    _time("created_at"),
    _time("updated_at", index=True),  # when it was last added to
    Column("n_bytes", BigInteger(), nullable=False, default=0),  # of its items
    _json("metadata"),
)

conversation_items = Table(
    "conversation_items",
    metadata,
    Column(
        "conversation_id",
        String(64),
        ForeignKey("conversations.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("position", Integer(), primary_key=True, autoincrement=False),  # rises in the order of the talk
    Column("id", Id(), nullable=False, index=True),
    _time("created_at"),
    _json("item"),
)

responses = Table(
    "responses",
    metadata,
    _id(),
    _key_id(),
    _tenant(),
    _time("created_at", index=True),
    Column("previous_id", String(64), nullable=True),
    Column("conversation_id", String(64), nullable=True),
    _json("response"),  # as clients get it, without its output
)

response_items = Table(
    "response_items",
    metadata,
    Column("response_id", String(64), ForeignKey("responses.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer(), primary_key=True, autoincrement=False),  # inputs first
    Column("id", Id(), nullable=False, index=True),
    Column("is_output", Boolean(), nullable=False),
    _json("item"),
)
