"""Batches: what is asked for, how far it is, and the lines that are done.

A server owns a batch for a while and renews that as long as it lives; then any other one may go on with it.
Whatever two servers do to a batch at the same time, a line's result is kept once, by its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from puna.server.storage.database import Database
from puna.server.storage.files import RUNNING, StoredFile, insert_row
from puna.server.storage.pages import page
from puna.server.storage.tables import batch_lines, batches

Batch = dict[str, Any]  # a row, by its columns' names
_PAGE = 500  # lines


class Lost(Exception):
    """The batch belongs to another server by now."""


def create(database: Database, row: Mapping[str, Any]) -> Batch:
    with database.write() as connection:
        connection.execute(insert(batches), {**row})
        return _row(connection.execute(select(batches).where(batches.c.id == row["id"])).one())


def find(database: Database, tenant: str, id: str) -> Batch | None:
    query = select(batches).where(batches.c.id == id, batches.c.tenant == tenant)
    with database.read() as connection:
        found = connection.execute(query).one_or_none()
    return None if found is None else _row(found)


def newest(database: Database, tenant: str, after: str | None, limit: int) -> tuple[list[Batch], bool] | None:
    """A page of a tenant's batches, the newest first; None where `after` is not there."""
    query = select(batches).where(batches.c.tenant == tenant)
    with database.read() as connection:
        order = [batches.c.created_at, batches.c.id]
        found = page(connection, query, order, batches.c.id, after, limit, is_rising=False)
    return None if found is None else ([_row(row) for row in found[0]], found[1])


def cancel(database: Database, tenant: str, id: str) -> Batch | None:
    """Ask for a batch to end -> as it is now; None where it is not there."""
    mine = (batches.c.id == id) & (batches.c.tenant == tenant)
    change = update(batches).where(mine, batches.c.status.in_(("validating", "in_progress")))
    with database.write() as connection:
        connection.execute(change.values(status="cancelling", cancelling_at=datetime.now(UTC)))
    return find(database, tenant, id)


def claim(database: Database, owner: str, models: Sequence[str], until: datetime, most: int) -> list[Batch]:
    """Take at most `most` batches that nobody runs, if their models are here or there is no time left."""
    now = datetime.now(UTC)
    is_free = or_(batches.c.owner.is_(None), batches.c.owned_until < now)
    waiting = select(batches).where(batches.c.status.in_(RUNNING), is_free).order_by(batches.c.created_at)
    with database.read() as connection:
        rows = connection.execute(waiting).all()
    found: list[Batch] = []
    for row in rows:
        if len(found) == most:
            break
        has_to_end = row.status == "cancelling" or row.expires_at <= now
        if not has_to_end and not set(row.models) <= set(models):
            continue
        taken = update(batches).where(batches.c.id == row.id, is_free)
        with database.write() as connection:
            if connection.execute(taken.values(owner=owner, owned_until=until)).rowcount:
                found.append(_row(row) | {"owner": owner})
    return found


def renew(database: Database, owner: str, until: datetime) -> dict[str, str]:
    """Go on owning -> the status of each batch that is still owned, by id."""
    mine = (batches.c.owner == owner) & batches.c.status.in_(RUNNING)
    with database.write() as connection:
        connection.execute(update(batches).where(mine).values(owned_until=until))
        rows = connection.execute(select(batches.c.id, batches.c.status).where(mine)).all()
    return {row.id: row.status for row in rows}


def release(database: Database, owner: str, id: str | None = None) -> None:
    """Let other servers go on with a batch, or with all."""
    with database.write() as connection:
        free = update(batches).where(batches.c.owner == owner)
        if id is not None:
            free = free.where(batches.c.id == id)
        connection.execute(free.values(owner=None, owned_until=None))


def begin(database: Database, owner: str, id: str, n_total: int, models: Sequence[str]) -> None:
    """All lines are good: run them. Raises Lost; a batch that is being cancelled stays so."""
    now = datetime.now(UTC)
    with database.write() as connection:
        _own(connection, owner, id, n_total=n_total, models=[*models])
        change = update(batches).where(batches.c.id == id, batches.c.status == "validating")
        connection.execute(change.values(status="in_progress", in_progress_at=now))


def fail(database: Database, owner: str, id: str, errors: Sequence[Mapping[str, Any]]) -> None:
    """The batch cannot be run at all. Raises Lost."""
    with database.write() as connection:
        _own(connection, owner, id, status="failed", failed_at=datetime.now(UTC), errors=[*errors])


def done(database: Database, id: str) -> set[int]:
    """Numbers of the lines that have a result."""
    query = select(batch_lines.c.number).where(batch_lines.c.batch_id == id)
    with database.read() as connection:
        return set(connection.execute(query).scalars())


def record(
    database: Database, owner: str, id: str, number: int, result: Mapping[str, Any], *, is_good: bool
) -> None:
    """Keep the result of a line, once. Raises Lost."""
    with database.write() as connection:
        _own(connection, owner, id)
        _insert_lines(connection, id, {number: result}, is_good=is_good)


def record_unrun(database: Database, owner: str, id: str, results: Mapping[int, Mapping[str, Any]]) -> None:
    """Keep errors for lines that will not be run any more. Raises Lost."""
    with database.write() as connection:
        _own(connection, owner, id)
        _insert_lines(connection, id, results, is_good=False)


def _insert_lines(
    connection: Connection, id: str, results: Mapping[int, Mapping[str, Any]], *, is_good: bool
) -> None:
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    rows = [
        {"batch_id": id, "number": number, "is_good": is_good, "result": dict(result)}
        for number, result in results.items()
    ]
    n_new = 0
    for row in rows:
        kept = make(batch_lines).values(row).on_conflict_do_nothing().returning(batch_lines.c.number)
        n_new += len(connection.execute(kept).all())
    count = batches.c.n_completed if is_good else batches.c.n_failed
    connection.execute(update(batches).where(batches.c.id == id).values({count: count + n_new}))


def results(database: Database, id: str, *, is_good: bool) -> Iterator[dict[str, Any]]:
    """Results in the order of their lines."""
    table, last = batch_lines, 0
    query = select(table.c.number, table.c.result).where(table.c.batch_id == id, table.c.is_good == is_good)
    while True:
        with database.read() as connection:
            rows = connection.execute(
                query.where(table.c.number > last).order_by(table.c.number).limit(_PAGE)
            ).all()
        yield from (row.result for row in rows)
        if len(rows) < _PAGE:
            return
        last = rows[-1].number


def set_finalizing(database: Database, owner: str, id: str) -> None:
    """Raises Lost."""
    with database.write() as connection:
        _own(connection, owner, id)
        change = update(batches).where(batches.c.id == id, batches.c.status == "in_progress")
        connection.execute(change.values(status="finalizing", finalizing_at=datetime.now(UTC)))


def finish(
    database: Database,
    owner: str,
    batch: Mapping[str, Any],
    status: str,
    output: StoredFile | None,
    errors: StoredFile | None,
    usage: Mapping[str, Any],
) -> None:
    """The batch ends, and its files are there, at once. Raises Lost."""
    id = batch["id"]
    with database.write() as connection:
        _own(
            connection,
            owner,
            id,
            status=status,
            usage=dict(usage),
            output_file_id=output.id if output else None,
            error_file_id=errors.id if errors else None,
            **{f"{status}_at": datetime.now(UTC)},
        )
        for file in (output, errors):
            if file is not None:
                insert_row(connection, file, batch["key_id"])
        connection.execute(delete(batch_lines).where(batch_lines.c.batch_id == id))


def sweep(database: Database, before: datetime) -> None:
    """Forget batches that ended and were made before that."""
    old = (batches.c.created_at < before) & batches.c.status.not_in(RUNNING)
    with database.write() as connection:
        connection.execute(delete(batches).where(old))


def _own(connection: Connection, owner: str, id: str, **values: Any) -> None:
    """Change a batch that is ours, and lock its row. Raises Lost."""
    mine = (batches.c.id == id) & (batches.c.owner == owner) & batches.c.status.in_(RUNNING)
    if connection.execute(update(batches).where(mine).values(owner=owner, **values)).rowcount == 0:
        raise Lost(id)


def _row(row: Any) -> Batch:
    return dict(row._mapping)
