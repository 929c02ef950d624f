"""/v1/conversations: create, retrieve, update, delete; their items."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest

from puna.server.errors import ApiError, not_found
from puna.server.openai.fields import Body
from puna.server.openai.lists import Limit, Order, listed
from puna.server.openai.responses.context import too_long
from puna.server.openai.responses.items import InputItem, Item, kept_items, new_id, references
from puna.server.openai.responses.request import Include, Metadata
from puna.server.service import Service
from puna.server.storage import conversations, responses
from puna.server.storage.database import Database
from puna.server.strict import Route
from puna.server.tenants.accounts import Account

_Items = Annotated[list[InputItem], Field(max_length=20)]


class Create(Body):
    items: _Items | None = None
    metadata: Metadata | None = None


class Update(Body):
    metadata: Metadata


class AddItems(Body):
    items: Annotated[_Items, Field(min_length=1)]


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=Route)
    database = service.accounts.database

    @router.post("/v1/conversations")
    async def create(http: HttpRequest, body: Create | None = None) -> dict[str, Any]:
        """Begin a conversation."""
        if body is None and await http.body():
            raise ApiError(400, "the body must be an object, found null")
        body = body or Create()
        account = service.authenticate(http)
        items = await _kept(database, account, body.items or [])
        id, metadata = new_id("conv"), body.metadata or {}
        created = await _tried(
            conversations.create, database, account.tenant, account.key_id or "", id, metadata, items
        )
        return _conversation(id, int(created.timestamp()), metadata)

    @router.get("/v1/conversations/{id}")
    async def retrieve(id: str, http: HttpRequest) -> dict[str, Any]:
        """A conversation without its items."""
        row = await asyncio.to_thread(conversations.find, database, service.authenticate(http).tenant, id)
        if row is None:
            raise _missing(id)
        return _conversation(id, int(row.created_at.timestamp()), row.metadata)

    @router.post("/v1/conversations/{id}")
    async def update(id: str, body: Update, http: HttpRequest) -> dict[str, Any]:
        """Set the metadata of a conversation."""
        tenant = service.authenticate(http).tenant
        if not await asyncio.to_thread(conversations.set_metadata, database, tenant, id, body.metadata):
            raise _missing(id)
        return await retrieve(id, http)

    @router.delete("/v1/conversations/{id}")
    async def delete(id: str, http: HttpRequest) -> dict[str, Any]:
        """Forget a conversation and its items."""
        tenant = service.authenticate(http).tenant
        if not await asyncio.to_thread(conversations.remove, database, tenant, id):
            raise _missing(id)
        return {"id": id, "object": "conversation.deleted", "deleted": True}

    _add_item_routes(router, service, retrieve)
    return router


def _add_item_routes(router: APIRouter, service: Service, retrieve: Callable[..., Any]) -> None:
    database = service.accounts.database

    @router.get("/v1/conversations/{id}/items")
    async def items(
        id: str,
        http: HttpRequest,
        after: str | None = None,
        limit: Limit = 20,
        order: Order = "desc",
        include: Include = None,
    ) -> dict[str, Any]:
        """The items of a conversation."""
        tenant, is_rising = service.authenticate(http).tenant, order == "asc"
        page = await asyncio.to_thread(
            conversations.item_page, database, tenant, id, after, limit, is_rising=is_rising
        )
        if page is None:
            raise _missing(id) if after is None else _missing(id, after)
        return listed(*page)

    @router.post("/v1/conversations/{id}/items")
    async def add(id: str, body: AddItems, http: HttpRequest, include: Include = None) -> dict[str, Any]:
        """Add items to a conversation."""
        account = service.authenticate(http)
        kept = await _kept(database, account, body.items)

        def added() -> bool:
            with database.write() as connection:
                return conversations.add(connection, account.tenant, id, kept)

        if not await _tried(added):
            raise _missing(id)
        return listed(kept, False)

    @router.get("/v1/conversations/{id}/items/{item_id}")
    async def item(id: str, item_id: str, http: HttpRequest, include: Include = None) -> dict[str, Any]:
        """One item."""
        tenant = service.authenticate(http).tenant
        found = await asyncio.to_thread(conversations.find_item, database, tenant, id, item_id)
        if found is None:
            raise _missing(id, item_id)
        return found

    @router.delete("/v1/conversations/{id}/items/{item_id}")
    async def remove(id: str, item_id: str, http: HttpRequest) -> dict[str, Any]:
        """Take an item out; answers with the conversation."""
        tenant = service.authenticate(http).tenant
        if not await asyncio.to_thread(conversations.remove_item, database, tenant, id, item_id):
            raise _missing(id, item_id)
        found: dict[str, Any] = await retrieve(id, http)
        return found


async def _kept(database: Database, account: Account, given: list[Any]) -> list[Item]:
    ids = references(given)
    found = await asyncio.to_thread(responses.referred, database, account.tenant, ids) if ids else {}
    return kept_items(given, found, "items")


async def _tried(make: Callable[..., Any], *args: Any) -> Any:
    try:
        return await asyncio.to_thread(make, *args)
    except conversations.TooLong as error:
        raise too_long(error.args[0]) from None


def _missing(id: str, item_id: str | None = None) -> ApiError:
    if item_id is not None:
        return not_found(f"there is no item {item_id!r} in the conversation {id!r}", "item_id")
    return not_found(f"there is no conversation {id!r}", "conversation_id", "conversation_not_found")


def _conversation(id: str, created_at: int, metadata: dict[str, str]) -> dict[str, Any]:
    return {"id": id, "object": "conversation", "created_at": created_at, "metadata": metadata}
