"""Conversations: items in the order of the talk. Only the tenant that made one sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from puna.server.storage.database import Database
from puna.server.storage.pages import page
from puna.server.storage.tables import conversation_items, conversations

Item = dict[str, Any]
MOST_BYTES = 64 << 20  # of the items of one conversation: all of them are read for an answer


class TooLong(Exception):
    """A conversation would have more than MOST_BYTES; the bytes are the argument."""


def size(items: Sequence[Item]) -> int:
    return sum(len(json.dumps(item, ensure_ascii=False)) for item in items)


def create(
    database: Database,
    tenant: str,
    key_id: str,
    id: str,
    metadata: Mapping[str, str],
    items: Sequence[Item],
) -> datetime:
    """Raises TooLong."""
    now = datetime.now(UTC)
    row = {"id": id, "tenant": tenant, "key_id": key_id, "created_at": now, "updated_at": now}
    with database.write() as connection:
        connection.execute(insert(conversations), {**row, "metadata": dict(metadata)})
        add(connection, tenant, id, items)
    return now


def find(database: Database, tenant: str, id: str) -> Any:
    """Its row, or None."""
    query = select(conversations).where(conversations.c.id == id, conversations.c.tenant == tenant)
    with database.read() as connection:
        return connection.execute(query).one_or_none()


def set_metadata(database: Database, tenant: str, id: str, metadata: Mapping[str, str]) -> bool:
    """Whether it was there."""
    mine = (conversations.c.id == id) & (conversations.c.tenant == tenant)
    with database.write() as connection:
        change = update(conversations).where(mine).values(metadata=dict(metadata))
        return connection.execute(change).rowcount > 0


def remove(database: Database, tenant: str, id: str) -> bool:
    """Whether it was there."""
    with database.write() as connection:
        gone = delete(conversations).where(conversations.c.id == id, conversations.c.tenant == tenant)
        return connection.execute(gone).rowcount > 0


def add(
    connection: Connection, tenant: str, id: str, items: Sequence[Item], *, is_limited: bool = True
) -> bool:
    """Items at the end -> whether the conversation was there. Raises TooLong where that is limited.

    The row of the conversation is written first: whoever adds at the same time waits for that.
    """
    table, mine = conversations, (conversations.c.id == id) & (conversations.c.tenant == tenant)
    n_bytes = size(items)
    now = datetime.now(UTC)
    change = update(table).where(mine).values(updated_at=now, n_bytes=table.c.n_bytes + n_bytes)
    if connection.execute(change).rowcount == 0:
        return False
    total = connection.execute(select(table.c.n_bytes).where(table.c.id == id)).scalar_one()
    if is_limited and total > MOST_BYTES:
        raise TooLong(total)
    last = select(func.max(conversation_items.c.position)).where(conversation_items.c.conversation_id == id)
    first = (connection.execute(last).scalar_one() or 0) + 1
    rows = [
        {"conversation_id": id, "position": first + i, "id": item["id"], "created_at": now, "item": item}
        for i, item in enumerate(items)
    ]
    if rows:
        connection.execute(insert(conversation_items), rows)
    return True


def items_of(database: Database, tenant: str, id: str) -> tuple[list[Item], int] | None:
    """All its items in order, and their bytes; None where there is no such conversation."""
    row = find(database, tenant, id)
    if row is None:
        return None
    table = conversation_items
    query = select(table.c.item).where(table.c.conversation_id == id).order_by(table.c.position)
    with database.read() as connection:
        return list(connection.execute(query).scalars()), row.n_bytes


def item_page(
    database: Database, tenant: str, id: str, after: str | None, limit: int, *, is_rising: bool
) -> tuple[list[Item], bool] | None:
    """None where the conversation or `after` is not there."""
    if find(database, tenant, id) is None:
        return None
    table = conversation_items
    mine = select(table).where(table.c.conversation_id == id)
    with database.read() as connection:
        order = [table.c.position]
        found = page(connection, mine, order, table.c.id, after, limit, is_rising=is_rising)
    return None if found is None else ([row.item for row in found[0]], found[1])


def find_item(database: Database, tenant: str, id: str, item_id: str) -> Item | None:
    table = conversation_items
    query = (
        select(table.c.item)
        .join(conversations, conversations.c.id == table.c.conversation_id)
        .where(table.c.conversation_id == id, table.c.id == item_id, conversations.c.tenant == tenant)
    )
    with database.read() as connection:
        found: Item | None = connection.execute(query).scalar_one_or_none()
        return found


def remove_item(database: Database, tenant: str, id: str, item_id: str) -> bool:
    """Whether the item was there."""
    item = find_item(database, tenant, id, item_id)
    if item is None:
        return False
    table = conversation_items
    with database.write() as connection:
        gone = delete(table).where(table.c.conversation_id == id, table.c.id == item_id)
        if connection.execute(gone).rowcount == 0:
            return False
        less = conversations.c.n_bytes - size([item])
        connection.execute(update(conversations).where(conversations.c.id == id).values(n_bytes=less))
    return True
