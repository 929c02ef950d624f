"""Lists: OpenAI's pages, after an id, at most so many, either way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Query

Order = Literal["asc", "desc"]
Limit = Annotated[int, Query(ge=1, le=100)]


def listed(items: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [*items],
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }
