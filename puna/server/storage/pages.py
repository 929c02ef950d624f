"""Pages of long lists: after a row, so many, either way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Connection, Select, tuple_


def page(
    connection: Connection,
    query: Select[Any],
    order: Sequence[Column[Any]],
    id: Column[Any],
    after: str | None,
    limit: int,
    *,
    is_rising: bool,
    among: Select[Any] | None = None,
) -> tuple[list[Any], bool] | None:
    """At most `limit` rows behind the one whose `id` is `after` (None: from the beginning) -> rows, are there
    more; None where no row of `among` (without it, of the query) is called `after`.

    `order` are columns of the query that tell any two rows apart.
    """
    if after is not None:
        last = connection.execute((query if among is None else among).where(id == after)).one_or_none()
        if last is None:
            return None
        here = tuple_(*order)
        there = tuple(getattr(last, column.name) for column in order)
        query = query.where(here > there if is_rising else here < there)
    query = query.order_by(*(column.asc() if is_rising else column.desc() for column in order))
    rows = list(connection.execute(query.limit(limit + 1)))
    return rows[:limit], len(rows) > limit
