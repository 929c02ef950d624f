"""What the ledger holds: sums by tenant, key, model or day, single rows in pages, and CSV of any length."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Select, bindparam, func, select, tuple_

from puna.core import BadValue, closest
from puna.server.storage.database import Database
from puna.server.storage.tables import usage as table
from puna.server.tenants.prices import dollars
from puna.server.tenants.usage import COLUMNS, Usage, from_columns

GROUPS = {
    "tenant": table.c.tenant,
    "key": table.c.key_id,
    "model": table.c.model,
    "day": table.c.day,
    "endpoint": table.c.endpoint,
    "status": table.c.status,
}
SUMS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens", "cost_nano")
_CHUNK = 1000  # rows read at a time


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows; None is any. `since` is the first moment that counts, `until` the first that does not."""

    since: datetime | None = None
    until: datetime | None = None
    tenant: str | None = None
    key: str | None = None  # its id
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over the rows of one group; `group` has the values in the order asked for, days as YYYY-MM-DD."""

    group: tuple[str, ...]
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int


def totals(
    database: Database,
    by: Sequence[str] = (),
    filters: Filters | None = None,
    *,
    limit: int | None = None,
    offset: int = 0,
) -> list[Total]:
    """Sums for each group, in the order of the groups' names; one sum over all with no group.

    `by` are names of GROUPS. Raises BadValue for another, and DatabaseUnavailable.
    """
    for name in by:
        if name not in GROUPS:
            known = ", ".join(GROUPS)
            raise BadValue(f"usage is summed by {known}; got {name!r}{closest(name, list(GROUPS))}")
    columns = [GROUPS[name] for name in by]
    sums = [func.coalesce(func.sum(table.c[name]), 0) for name in SUMS[1:]]
    query = select(*columns, func.count(), *sums)
    if columns:
        query = query.group_by(*columns).order_by(*columns)
    query = filtered(query, filters).limit(limit).offset(offset)
    with database.read() as connection:
        rows = connection.execute(query).all()
    n = len(columns)
    return [Total(tuple(map(str, row[:n])), *map(int, row[n:])) for row in rows]


def page(
    database: Database, filters: Filters | None = None, *, limit: int = 100, after: str | None = None
) -> list[Usage]:
    """Rows by time, oldest first; `after` is the request id of the last one of the page before.

    Raises BadValue if there is no such row, and DatabaseUnavailable.
    """
    order = (table.c.created_at, table.c.request_id)
    query = filtered(select(table), filters).order_by(*order).limit(limit)
    with database.read() as connection:
        if after is not None:
            last = connection.execute(select(*order).where(table.c.request_id == after)).one_or_none()
            if last is None:
                raise BadValue(f"after must be the request id of a row of the ledger, got {after!r}")

            query = query.where(
                tuple_(*order)
                > tuple_(*[bindparam(None, v, c.type) for c, v in zip(order, last, strict=True)])
            )
        return [from_columns(row) for row in connection.execute(query)]


def export_csv(database: Database, filters: Filters | None = None) -> Iterator[str]:
    """The rows by time as CSV (RFC 4180, UTF-8), in pieces; memory does not grow with their number."""
    yield _csv([[*COLUMNS[:-1], "cost_usd"]])
    query = filtered(select(table), filters).order_by(table.c.created_at, table.c.request_id)
    with database.read() as connection:
        streaming = connection.execution_options(stream_results=True, yield_per=_CHUNK)
        for rows in streaming.execute(query).partitions():
            yield _csv([_cells(from_columns(row)) for row in rows])


def tokens_today(database: Database, now: datetime | None = None) -> dict[str, int]:
    """Tokens that count against limits of a day, by key id: for a Limiter that starts."""
    today = (now or datetime.now(UTC)).astimezone(UTC).date()
    used = table.c.prompt_tokens - table.c.cached_tokens + table.c.output_tokens
    query = select(table.c.key_id, func.sum(used)).where(table.c.day == today, table.c.key_id != "")
    with database.read() as connection:
        return {key: int(n) for key, n in connection.execute(query.group_by(table.c.key_id))}


def moment(text: str) -> datetime:
    """A day (its beginning) or a time in ISO 8601; UTC unless it says otherwise. Raises BadValue."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        example = date(2026, 12, 1).isoformat()
        raise BadValue(f"a time must be like {example} or {example}T08:30:00Z, got {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def filtered(query: Select[Any], filters: Filters | None) -> Select[Any]:
    """A query of the table of usage with these rows alone."""
    if filters is None:
        return query
    if filters.since is not None:
        query = query.where(table.c.created_at >= filters.since)
    if filters.until is not None:
        query = query.where(table.c.created_at < filters.until)
    for column, value in (
        (table.c.tenant, filters.tenant),
        (table.c.key_id, filters.key),
        (table.c.model, filters.model),
    ):
        if value is not None:
            query = query.where(column == value)
    return query


def _cells(row: Usage) -> list[object]:
    cells = [getattr(row, name) for name in COLUMNS[:-1]]
    cells[COLUMNS.index("created_at")] = row.created_at.isoformat()
    return [*cells, dollars(row.cost_nano)]


def _csv(rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()
