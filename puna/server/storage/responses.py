"""Responses that are kept: each with the items it was given and those it gave.

An item is a row of its own, because requests may refer to it, and a response leads back to the one that it
continued; what the model has to read is found by walking back. Only the tenant that made a thing sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, literal, select, update

from puna.server.storage.database import Database
from puna.server.storage.pages import page
from puna.server.storage.tables import conversation_items, conversations, response_items, responses

Item = dict[str, Any]
_LONGEST = 10_000  # responses that continue one another


class Gone(Exception):
    """A response that others continue is not there any more; its id is the message."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One response as it is kept."""

    id: str
    created_at: datetime
    response: dict[str, Any]  # without its output
    output: list[Item]

    def to_json(self) -> dict[str, Any]:
        return {**self.response, "output": self.output}


def save(
    connection: Connection,
    tenant: str,
    key_id: str,
    response: Mapping[str, Any],
    created_at: datetime,
    given: Sequence[Item],
) -> bool:
    """Keep a response, as clients get it, and the items it was given -> whether it is new.

    The same line of a batch that is run again replaces what it gave the first time.
    """
    same = (responses.c.id == response["id"]) & (responses.c.tenant == tenant)
    is_new = connection.execute(delete(responses).where(same)).rowcount == 0
    conversation = response["conversation"]
    row = {
        "id": response["id"],
        "tenant": tenant,
        "key_id": key_id,
        "created_at": created_at,
        "previous_id": response["previous_response_id"],
        "conversation_id": conversation["id"] if conversation else None,
        "response": {name: value for name, value in response.items() if name != "output"},
    }
    connection.execute(insert(responses), row)
    _add_items(connection, response["id"], 0, given, is_output=False)
    _add_items(connection, response["id"], len(given), response["output"], is_output=True)
    return is_new


def finish(connection: Connection, response: Mapping[str, Any], n_given: int) -> bool:
    """Write what became of a response that was kept while it was made -> whether it is still there."""
    kept = {name: value for name, value in response.items() if name != "output"}
    change = update(responses).where(responses.c.id == response["id"]).values(response=kept)
    if connection.execute(change).rowcount == 0:
        return False
    _add_items(connection, response["id"], n_given, response["output"], is_output=True)
    return True


def _add_items(
    connection: Connection, response_id: str, first: int, items: Sequence[Item], *, is_output: bool
) -> None:
    rows = [
        {
            "response_id": response_id,
            "position": first + i,
            "id": item["id"],
            "is_output": is_output,
            "item": item,
        }
        for i, item in enumerate(items)
    ]
    if rows:
        connection.execute(insert(response_items), rows)


def find(database: Database, tenant: str, id: str) -> Stored | None:
    query = select(responses).where(responses.c.id == id, responses.c.tenant == tenant)
    items = response_items
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        made = select(items.c.item).where(items.c.response_id == id, items.c.is_output)
        output = list(connection.execute(made.order_by(items.c.position)).scalars())
    return Stored(row.id, row.created_at, row.response, output)


def remove(database: Database, tenant: str, id: str) -> bool:
    """Whether it was there."""
    with database.write() as connection:
        gone = delete(responses).where(responses.c.id == id, responses.c.tenant == tenant)
        return connection.execute(gone).rowcount > 0


def history(database: Database, tenant: str, id: str) -> list[Item] | None:
    """All items that a response has seen and made, oldest first; None where there is no such response.

    Raises Gone where one that it continues has been deleted or has expired.
    """
    start = (
        select(responses.c.id, responses.c.previous_id, literal(0).label("back"))
        .where(responses.c.id == id, responses.c.tenant == tenant)
        .cte("chain", recursive=True)
    )
    chain = start.union_all(
        select(responses.c.id, responses.c.previous_id, start.c.back + 1).where(
            responses.c.id == start.c.previous_id, responses.c.tenant == tenant, start.c.back < _LONGEST
        )
    )
    items = response_items
    with database.read() as connection:
        oldest = connection.execute(select(chain).order_by(chain.c.back.desc()).limit(1)).one_or_none()
        if oldest is None:
            return None
        if oldest.previous_id is not None:
            raise Gone(oldest.previous_id)
        query = select(items.c.item).join(chain, items.c.response_id == chain.c.id)
        return list(connection.execute(query.order_by(chain.c.back.desc(), items.c.position)).scalars())


def input_page(
    database: Database, tenant: str, id: str, after: str | None, limit: int, *, is_rising: bool
) -> tuple[list[Item], bool] | None:
    """A page of what a response was given itself; None where the response or `after` is not there."""
    items = response_items
    mine = select(items).where(items.c.response_id == id, ~items.c.is_output)
    with database.read() as connection:
        there = select(exists().where(responses.c.id == id, responses.c.tenant == tenant))
        if not connection.execute(there).scalar_one():
            return None
        order = [items.c.position]
        found = page(connection, mine, order, items.c.id, after, limit, is_rising=is_rising)
    return None if found is None else ([row.item for row in found[0]], found[1])


def referred(database: Database, tenant: str, ids: Sequence[str]) -> dict[str, Item]:
    """The items with these ids, of responses and conversations alike, as far as they are there."""
    made, said = response_items, conversation_items
    with database.read() as connection:
        found: dict[str, Item] = {}
        queries = (
            select(said.c.id, said.c.item)
            .join(conversations, conversations.c.id == said.c.conversation_id)
            .where(said.c.id.in_(ids), conversations.c.tenant == tenant),
            select(made.c.id, made.c.item)
            .join(responses, responses.c.id == made.c.response_id)
            .where(made.c.id.in_(ids), responses.c.tenant == tenant),
        )
        for query in queries:
            found |= {row.id: row.item for row in connection.execute(query)}
    return found
