"""All that the model has to read for a response: what it continues, and what the request gives."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from puna.server.errors import bad, not_found
from puna.server.openai.responses.items import (
    Item,
    check_results,
    check_unicode,
    kept_items,
    references,
    turns,
)
from puna.server.openai.responses.request import Context
from puna.server.service import Service
from puna.server.storage import conversations, responses
from puna.server.tenants.accounts import Account


@dataclass(frozen=True, slots=True)
class Reading:
    given: list[Item]  # by this request
    turns: list[dict[str, Any]]  # all of it, as chat templates read it


async def read(service: Service, account: Account, body: Context) -> Reading:
    """Raises ApiError."""
    check_unicode(body.instructions, "instructions")
    check_unicode([tool.model_dump() for tool in body.tools or ()], "tools")
    before = await _before(service, account.tenant, body)
    given_input = body.input if body.input is not None else []
    found: dict[str, Item] = {}
    if ids := references(given_input):
        found = await asyncio.to_thread(responses.referred, service.accounts.database, account.tenant, ids)
    given = kept_items(given_input, found)
    items = [*before, *given]
    check_results(items)
    plain = turns(body.instructions, items)
    if not items:
        raise bad("input", "input must have at least one item, found none")
    return Reading(given, plain)


async def _before(service: Service, tenant: str, body: Context) -> list[Item]:
    database = service.accounts.database
    if (id := body.previous_response_id) is not None:
        try:
            items = await asyncio.to_thread(responses.history, database, tenant, id)
        except responses.Gone as gone:
            raise bad(
                "previous_response_id",
                f"{id} continues {gone}, which has been deleted or has expired; give the items themselves",
                code="previous_response_not_found",
            ) from None
        if items is None:
            raise not_found(
                f"there is no response {id!r}; only those that were stored can be continued",
                "previous_response_id",
                "previous_response_not_found",
            )
        return items
    if (id := body.conversation_id) is not None:
        found = await asyncio.to_thread(conversations.items_of, database, tenant, id)
        if found is None:
            raise not_found(f"there is no conversation {id!r}", "conversation", "conversation_not_found")
        items, n_bytes = found
        if n_bytes > conversations.MOST_BYTES:
            raise too_long(n_bytes)
        return items
    return []


def too_long(n_bytes: int) -> Exception:
    return bad(
        "conversation",
        f"a conversation may have {conversations.MOST_BYTES:,} bytes, this one would have {n_bytes:,}; "
        "begin another one",
        code="conversation_too_long",
    )
