"""/llama/v1/chat/completions, /moderations, /models, and what there is no answer to here: /uploads."""

from __future__ import annotations

from typing import Any, NoReturn

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.server.chats import Chat, begin_chat
from puna.server.errors import ApiError
from puna.server.images import resolved, uploaded
from puna.server.llama_api.fields import ChatRequest, Moderation, Upload
from puna.server.llama_api.wire import completion, events, moderation
from puna.server.moderation import Judged, check_number, judged
from puna.server.openai.fields import ignored
from puna.server.openai.messages import as_text_reads, use_of
from puna.server.openai.models import find, listed
from puna.server.replies import dumps, reply
from puna.server.service import Service
from puna.server.strict import Route

PREFIX = "/llama/v1"
_ANY_GUARD = ("Llama-Guard",)  # the client's default


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix=PREFIX, tags=["Llama API"], route_class=Route)

    @router.post("/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation, at once or as a stream."""
        form = body.response_format
        chat = Chat(
            body.model,
            [as_text_reads(turn) for turn in body.messages],
            body.sampling,
            use_of(body.tools, body.tool_choice),
            form=None if form is None else form.grammar_for,
        )
        call = await begin_chat(service, http, "llama/chat", chat)
        return await reply(
            service,
            call,
            http,
            is_stream=bool(body.stream),
            chunks=events(call),
            whole=lambda found: completion(call, found[0]),
            headers=ignored(body, await http.json()),
        )

    @router.get("/models")
    async def models(http: HttpRequest) -> dict[str, Any]:
        """The models that requests may name."""
        service.authenticate(http)
        return {"data": [listed(card) for card in service.models.cards()]}

    @router.get("/models/{name:path}")
    async def model(name: str, http: HttpRequest) -> dict[str, Any]:
        """One model."""
        service.authenticate(http)
        return listed(find(service.models.cards(), name))

    @router.post("/moderations", response_model=None)
    async def moderations(body: Moderation, http: HttpRequest) -> Response:
        """Say which messages of a conversation are unsafe, each as the answer to those before it."""
        found = await _judged(service, body, http)
        return Response(dumps(moderation(found)), 200, found.call.headers, "application/json")

    @router.post("/uploads", response_model=None)
    async def uploads(body: Upload, http: HttpRequest) -> NoReturn:
        """Not served: images come in messages, as data URLs."""
        service.authenticate(http)
        raise ApiError(
            501,
            "this server keeps no uploads of the Llama API; send an image in its message, as "
            "data:image/…;base64,…",
            code="not_implemented",
        )

    return router


async def _judged(service: Service, body: Moderation, http: HttpRequest) -> Judged:
    """Each message as the end of a conversation. Raises ApiError."""
    files = uploaded(service.files, service.authenticate(http).tenant)
    check_number(len(body.messages), "messages")
    said = [as_text_reads(turn) for turn in body.messages]
    turns = [(t["role"], t["content"]) for t in await resolved(service.config.image_host, said, files)]
    return await judged(
        service,
        http,
        "llama/moderations",
        body.model,
        [turns[: i + 1] for i in range(len(turns))],
        any_guard=_ANY_GUARD,
        param="messages",
    )
