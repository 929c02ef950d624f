"""Pages of long lists: after a row, so many, either way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Connection, Select, tuple_


def page(
    connection: Connection,
    query: Select[Any],
    order: Sequence[Column[Any]],
    after: Any,
    limit: int,
    *,
    is_rising: bool,
) -> tuple[list[Any], bool]:
    """At most `limit` rows behind the row `after` (None: from the beginning) -> rows, are there more.

    `order` are columns that tell any two rows apart; `after` has them by name.
    """
    if after is not None:
        here = tuple_(*order)
        there = tuple(getattr(after, column.name) for column in order)
        query = query.where(here > there if is_rising else here < there)
    query = query.order_by(*(column.asc() if is_rising else column.desc() for column in order))
    rows = list(connection.execute(query.limit(limit + 1)))
    return rows[:limit], len(rows) > limit
