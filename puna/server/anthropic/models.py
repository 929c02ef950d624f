"""/v1/models as Anthropic's clients read it. The path is OpenAI's as well (openai/models.py): the header
anthropic-version, which these clients always send, tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from puna.server.errors import bad
from puna.server.served import ModelCard

HEADER = "anthropic-version"
_PAGE, _MOST = 20, 1000  # models of a page


def page(cards: Sequence[ModelCard], query: Mapping[str, str]) -> dict[str, Any]:
    """One page of the list: `query` has limit, and after_id or before_id. Raises ApiError."""
    unknown = set(query) - {"limit", "after_id", "before_id", "lifecycle", "beta"}
    if unknown:
        name = min(unknown)
        raise bad(name, f"there is no parameter {name!r}; known are limit, after_id and before_id")
    limit = query.get("limit", str(_PAGE))
    if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit) <= _MOST:
        raise bad("limit", f"limit must be a number from 1 to {_MOST}, found {limit!r:.80}")
    names = [card.name for card in cards]
    first, last = 0, len(cards)
    if "after_id" in query:
        first = _place(names, query, "after_id") + 1
    if "before_id" in query:
        last = _place(names, query, "before_id")
        first = max(first, last - int(limit))
    shown = cards[first : min(last, first + int(limit))]
    is_backwards = "before_id" in query
    return {
        "data": [described(card) for card in shown],
        "has_more": first > 0 if is_backwards else first + len(shown) < last,
        "first_id": shown[0].name if shown else None,
        "last_id": shown[-1].name if shown else None,
    }


def _place(names: Sequence[str], query: Mapping[str, str], param: str) -> int:
    name = query[param]
    if name not in names:
        raise bad(param, f"{param} must be the id of a model in the list, found {name!r:.80}")
    return names.index(name)


def described(card: ModelCard) -> dict[str, Any]:
    return {
        "type": "model",
        "id": card.name,
        "display_name": card.name,
        "created_at": datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": card.context,
        "max_tokens": card.context,
        "capabilities": None,
    }
