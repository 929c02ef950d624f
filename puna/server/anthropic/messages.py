"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.server.anthropic.errors import body_of
from puna.server.anthropic.events import PING, events, message
from puna.server.anthropic.fields import FromAssistant, MessagesRequest, OneTool, Prompt, Tool
from puna.server.anthropic.turns import turns_of
from puna.server.chats import Chat, ToolUse, begin_chat, n_prompt_tokens, unchanged
from puna.server.openai.fields import ignored
from puna.server.replies import reply
from puna.server.service import Service
from puna.server.strict import Route
from puna.server.structured import compiled


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Anthropic"], route_class=Route)
    service.dialects.add("/v1/messages", body_of)

    @router.post("/v1/messages", response_model=None)
    async def messages(body: MessagesRequest, http: HttpRequest) -> Response:
        """Answer a conversation, at once or as a stream."""
        call = await begin_chat(service, http, "messages", _chat(body))
        return await reply(
            service,
            call,
            http,
            is_stream=bool(body.stream),
            chunks=events(call, body.max_tokens),
            whole=lambda found: message(call, body.max_tokens, found[0]),
            headers={"request-id": call.id, **await _ignored(body, http)},
            ping=PING,
        )

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: Prompt, http: HttpRequest) -> dict[str, Any]:
        """Tokens of the prompt that the same conversation would be."""
        return {"input_tokens": await n_prompt_tokens(service, http, _chat(body))}

    return router


def _chat(body: Prompt) -> Chat:
    """Raises ApiError."""
    turns, is_begun = turns_of(body)
    schema = body.answer_schema
    return Chat(
        body.model,
        turns,
        body.sampling if isinstance(body, MessagesRequest) else unchanged,
        _use(body),
        form=None if schema is None else lambda model: compiled(model, "json_schema", schema),
        continues=is_begun,
        ends_with_context=True,
    )


def _use(body: Prompt) -> ToolUse:
    choice = body.tool_choice
    is_single = bool(getattr(choice, "disable_parallel_tool_use", None))
    return ToolUse(
        [_openai(tool) for tool in body.tools or ()],
        may_call=choice is None or choice.type != "none",
        required=choice is not None and choice.type in ("any", "tool"),
        named=choice.name if isinstance(choice, OneTool) else None,
        parallel=not is_single,
    )


def _openai(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


async def _ignored(body: MessagesRequest, http: HttpRequest) -> dict[str, str]:
    """The header that names what did nothing: fields, and thinking of other models."""
    found = ignored(body, await http.json())
    is_thinking = any(
        block.type in ("thinking", "redacted_thinking")
        for turn in body.messages
        if isinstance(turn, FromAssistant) and isinstance(turn.content, list)
        for block in turn.content
    )
    names = [*found.values(), *(["messages.content.thinking"] if is_thinking else [])]
    return {"x-puna-ignored": ", ".join(names)} if names else {}
