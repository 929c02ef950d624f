"""A row of the ledger: what one call used."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from puna.core import BadValue
from puna.server.tenants.audit import Audit

STATUSES = ("ok", "cancelled", "error", "rejected")
_LONGEST = {"request_id": 128, "key_id": 64, "tenant": 200, "model": 300, "endpoint": 200}
_MOST = 2**53  # tokens and nano-dollars of one call; sums stay exact in 64 bits and in JSON


@dataclass(frozen=True, slots=True)
class Usage:
    """Raises BadValue for what no database would take, so that one row can never hold up the others."""

    request_id: str  # unique, and known to the client
    created_at: datetime  # UTC
    key_id: str | None
    tenant: str
    model: str
    endpoint: str
    prompt_tokens: int
    cached_tokens: int  # of the prompt's, not computed anew
    output_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    status: str  # one of STATUSES
    finish_reason: str
    cost_nano: int = 0  # billionths of a dollar
    audit: Audit | None = None  # of safety checks, a row of its own

    def __post_init__(self) -> None:
        for name, longest in {**_LONGEST, "finish_reason": 200}.items():
            text = getattr(self, name)
            if text is None and name == "key_id":
                continue
            if not isinstance(text, str) or not _is_storable(text, longest):
                raise BadValue(f"{name} must be a text of at most {longest} letters, got {text!r:.80}")
        if not self.request_id:
            raise BadValue("request_id must not be empty: it is what makes a row unique")
        if self.created_at.tzinfo is None:
            raise BadValue(f"created_at must have a time zone, got {self.created_at}")
        for name in ("prompt_tokens", "cached_tokens", "output_tokens", "cost_nano"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= _MOST:
                raise BadValue(f"{name} must be a whole number from 0 to {_MOST}, got {value!r}")
        if self.cached_tokens > self.prompt_tokens:
            raise BadValue(
                f"cached_tokens must be some of the {self.prompt_tokens} prompt tokens, "
                f"got {self.cached_tokens}"
            )
        for name in ("queue_s", "prefill_s", "decode_s"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not isfinite(value):
                raise BadValue(f"{name} must be a finite number of seconds, got {value!r}")
        if self.status not in STATUSES:
            raise BadValue(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")

    def to_columns(self) -> dict[str, Any]:
        """The row as the table has it."""
        created = self.created_at.astimezone(UTC)
        values = {name: getattr(self, name) for name in COLUMNS}
        return {**values, "created_at": created, "day": created.date(), "key_id": self.key_id or ""}

    def to_json(self) -> str:
        """One line; `from_json` gives an equal row."""
        values = {**asdict(self), "created_at": self.created_at.astimezone(UTC).isoformat()}
        return json.dumps(values, separators=(",", ":"))


COLUMNS = tuple(field.name for field in fields(Usage) if field.name != "audit")  # of its own table


def from_json(text: str) -> Usage:
    """Raises ValueError, KeyError or TypeError for what to_json() did not write."""
    values = json.loads(text)
    values["created_at"] = datetime.fromisoformat(values["created_at"])
    if (audit := values.get("audit")) is not None:
        values["audit"] = Audit(**audit)
    return Usage(**values)


def from_columns(row: Any) -> Usage:
    """A row of the table, by its columns' names, without its audit."""
    values = {name: getattr(row, name) for name in COLUMNS}
    return Usage(**{**values, "key_id": values["key_id"] or None})


def _is_storable(text: str, longest: int) -> bool:
    """Neither PostgreSQL nor UTF-8 has a place for NUL or for half a surrogate pair."""
    return len(text) <= longest and "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)
