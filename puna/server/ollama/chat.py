"""POST /api/chat."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from puna.server.calls import Call
from puna.server.chats import Chat, ToolUse, begin_chat
from puna.server.generation import Piece, Whole
from puna.server.ollama import wire
from puna.server.ollama.fields import Asked, is_let_go, picture
from puna.server.ollama.models import loaded
from puna.server.openai.fields import Body
from puna.server.service import Service


class CalledFunction(Body):
    harmless: ClassVar[tuple[str, ...]] = ("index",)
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class CallOfTool(Body):
    harmless: ClassVar[tuple[str, ...]] = ("id", "type")
    function: CalledFunction


class Message(Body):
    harmless: ClassVar[tuple[str, ...]] = ("thinking",)
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[CallOfTool] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class FunctionDefinition(Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    type: Literal["function"] = "function"
    function: FunctionDefinition


class ChatRequest(Asked):
    messages: list[Message] = Field(default_factory=list)
    tools: list[Tool] | None = None


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Ollama"], route_class=wire.AnyType)

    @router.post("/api/chat", response_model=None)
    async def chat(body: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation, as lines of JSON or at once."""
        body.check()
        if not body.messages:
            found = await loaded(service, http, body)
            message = {"role": "assistant", "content": ""}
            return JSONResponse(
                {**found, "message": message},
                headers=wire.ignored(await http.json(), is_obeyed=is_let_go(body.keep_alive)),
            )
        call = await _begin(service, body, http)
        said = _Said(body, call)
        return await wire.answer(service, call, body, http, said.message, said.message)

    return router


async def _begin(service: Service, body: ChatRequest, http: HttpRequest) -> Call:
    chat = Chat(
        body.name,
        [_turn(i, message) for i, message in enumerate(body.messages)],
        body.sampling,
        ToolUse([tool.model_dump(exclude_none=True) for tool in body.tools or ()]),
        form=body.grammar_for if body.is_held else None,
        limited=body.within_num_ctx,
    )
    return await begin_chat(service, http, "api/chat", chat)


def _turn(i: int, message: Message) -> dict[str, Any]:
    """A turn as chat templates know it. Raises ApiError."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.images:
        parts = [picture(f"messages[{i}].images", image) for image in message.images]
        plain["content"] = [*parts, {"type": "text", "text": message.content or ""}]
    if message.tool_calls:
        calls = [call.function.model_dump() for call in message.tool_calls]
        plain["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    if message.tool_name is not None:
        plain["name"] = message.tool_name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


class _Said:
    """Messages of one answer; calls of tools are numbered through all of its pieces."""

    def __init__(self, body: ChatRequest, call: Call) -> None:
        self._body, self._call = body, call
        self._n_calls = 0

    def message(self, piece: Piece | Whole) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.text}
        if piece.calls:
            message["tool_calls"] = [
                wire.tool_call(made, self._n_calls + i) for i, made in enumerate(piece.calls)
            ]
            self._n_calls += len(piece.calls)
        return {"message": message, **wire.with_logprobs(self._body, self._call, piece.logprobs)}
