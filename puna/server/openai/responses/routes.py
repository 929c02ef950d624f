"""/v1/responses: create, retrieve, delete, cancel, input_items, input_tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.core import PunaError
from puna.server.chats import n_prompt_tokens
from puna.server.errors import ApiError, bad, from_puna, not_found
from puna.server.openai.fields import ignored
from puna.server.openai.lists import Limit, Order, listed
from puna.server.openai.responses.context import read
from puna.server.openai.responses.events import Event
from puna.server.openai.responses.making import Making, begin
from puna.server.openai.responses.request import CountRequest, Include, ResponseRequest
from puna.server.replies import dumps
from puna.server.service import Service
from puna.server.sse import Stream, when_gone
from puna.server.storage import responses
from puna.server.storage.responses import Stored
from puna.server.strict import Route

Running = dict[str, tuple[Making, asyncio.Task[None]]]  # in the background, by id

_LATE_S = 60  # after its time is up, a background response that nobody finished has died with its server


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=Route)
    running: Running = {}

    @router.post("/v1/responses", response_model=None)
    async def create(body: ResponseRequest, http: HttpRequest) -> Response:
        """Answer with a response: at once, as a stream of events, or in the background."""
        making = await begin(service, body, http)
        headers = {**making.call.headers, **ignored(body, await http.json())}
        if body.background:
            return _json(await _in_background(service, making, running), headers)
        if body.stream:
            stall_s = service.config.stall_timeout
            return Stream(_wire(making), making.call.cancel, stall_s=stall_s, headers=headers)
        return _json(await _whole(making, http), headers)

    @router.post("/v1/responses/input_tokens", response_model=None)
    async def input_tokens(body: CountRequest, http: HttpRequest) -> Response:
        """The tokens of a response's prompt."""
        reading = await read(service, service.authenticate(http), body)
        n_tokens = await n_prompt_tokens(service, http, body.chat(reading.turns))
        found = {"object": "response.input_tokens", "input_tokens": n_tokens}
        return _json(found, ignored(body, await http.json()))

    @router.post("/v1/responses/compact", include_in_schema=False)
    async def compact(http: HttpRequest) -> None:
        """OpenAI's models shorten conversations by themselves; these cannot."""
        raise not_found("this server compacts no conversations; send the items that matter")

    _add_stored(router, service, running)
    return router


def _add_stored(router: APIRouter, service: Service, running: Running) -> None:
    @router.get("/v1/responses/{id}")
    async def retrieve(
        id: str, http: HttpRequest, stream: bool | None = None, include: Include = None
    ) -> dict[str, Any]:
        """A response that was stored."""
        if stream:
            raise bad("stream", "a stored response comes at once, stream must be false")
        found = await _find(service, http, id)
        return found.to_json() if id in running else _told(found, service.config.timeout)

    @router.delete("/v1/responses/{id}")
    async def delete(id: str, http: HttpRequest) -> dict[str, Any]:
        """Forget a response."""
        account = service.authenticate(http)
        if not await asyncio.to_thread(responses.remove, service.accounts.database, account.tenant, id):
            raise _missing(id)
        return {"id": id, "object": "response", "deleted": True}

    @router.post("/v1/responses/{id}/cancel")
    async def cancel(id: str, http: HttpRequest) -> dict[str, Any]:
        """Stop a response that is made in the background."""
        held = running.get(id)  # before it is looked up: it may end meanwhile
        found = await _find(service, http, id)
        if held is not None:
            making, task = held
            making.is_cancelled = True
            making.call.cancel()
            await asyncio.wait([task])
            found = await _find(service, http, id)
        elif not found.response["background"]:
            raise bad("id", f"{id} is not made in the background; close its connection to stop it")
        elif found.response["status"] == "in_progress":
            raise ApiError(409, f"{id} is made by another server; ask that one", param="id")
        return _told(found, service.config.timeout)

    @router.get("/v1/responses/{id}/input_items")
    async def input_items(
        id: str,
        http: HttpRequest,
        after: str | None = None,
        limit: Limit = 20,
        order: Order = "desc",
        include: Include = None,
    ) -> dict[str, Any]:
        """The items that a response was given, without those of the responses that it continues."""
        account = service.authenticate(http)
        database = service.accounts.database
        is_rising = order == "asc"
        page = await asyncio.to_thread(
            responses.input_page, database, account.tenant, id, after, limit, is_rising=is_rising
        )
        if page is None:
            raise _missing(id) if after is None else not_found(f"there is no {after!r} in {id!r}", "after")
        return listed(*page)


async def _find(service: Service, http: HttpRequest, id: str) -> Stored:
    account = service.authenticate(http)
    found = await asyncio.to_thread(responses.find, service.accounts.database, account.tenant, id)
    if found is None:
        raise _missing(id)
    return found


def _missing(id: str) -> ApiError:
    return not_found(f"there is no response {id!r}; only those with store: true are kept", "id")


def _json(data: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(dumps(data), 200, headers, "application/json")


async def _whole(making: Making, http: HttpRequest) -> dict[str, Any]:
    """Wait for the answer; it is cancelled if the client goes away."""
    watch = asyncio.create_task(when_gone(http.receive, making.call.cancel))
    last: Event = {}
    try:
        async for event in making.events():
            last = event
    finally:
        watch.cancel()
    found: dict[str, Any] = last["response"]
    return found


async def _wire(making: Making) -> AsyncIterator[bytes]:
    try:
        async for event in making.events():
            yield _event(event)
    except ApiError as error:
        yield _event(making.failed(error))


def _event(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), dumps(event))


async def _in_background(service: Service, making: Making, running: Running) -> dict[str, Any]:
    try:
        await asyncio.to_thread(making.keep_begun)
    except PunaError as error:
        making.call.cancel()
        await making.call.settle("cancelled")
        raise from_puna(error) from error
    task = asyncio.create_task(making.run())
    running[making.id] = making, task
    service.tasks.add(task)

    def ended(task: asyncio.Task[None]) -> None:
        running.pop(making.id, None)
        service.tasks.discard(task)

    task.add_done_callback(ended)
    return making.head


def _told(found: Stored, timeout_s: float) -> dict[str, Any]:
    """A response as it is kept; one whose server died while making it has failed."""
    response = found.to_json()
    until = found.created_at + timedelta(seconds=timeout_s + _LATE_S)
    if response["status"] == "in_progress" and datetime.now(UTC) > until:
        message = "the server stopped before the response was made; ask again"
        return {**response, "status": "failed", "error": {"code": "server_error", "message": message}}
    return response
