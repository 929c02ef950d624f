"""Rows of usage for tests, each a function of its number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select

from puna.server.storage.database import Database
from puna.server.storage.tables import usage
from puna.server.tenants.usage import Usage, from_columns

BEGIN = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)


def row(n: int, prefix: str = "r", **changes: Any) -> Usage:
    values: dict[str, Any] = {
        "request_id": f"{prefix}{n:07d}",
        "created_at": BEGIN + timedelta(seconds=n, microseconds=n % 7),
        "key_id": f"key_{n % 3}" if n % 4 else None,
        "tenant": ("acme", "Zoë", 'a "b", c')[n % 3],
        "model": ("smollm2", "llama")[n % 2],
        "endpoint": "/v1/chat/completions",
        "prompt_tokens": 100 + n,
        "cached_tokens": n % 50,
        "output_tokens": 7 * n % 1000,
        "queue_s": 0.001 * n,
        "prefill_s": 0.1,
        "decode_s": 1 / 3,
        "status": ("ok", "cancelled", "error")[n % 3],
        "finish_reason": "stop",
        "cost_nano": 10**12 + n,
    }
    return Usage(**{**values, **changes})


def stored(database: Database) -> list[Usage]:
    """All rows of the ledger, by request id."""
    with database.read() as connection:
        return [from_columns(r) for r in connection.execute(select(usage).order_by(usage.c.request_id))]
