"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.core import SamplingParams
from puna.server.calls import Call
from puna.server.chats import Chat, begin_chat
from puna.server.errors import ApiError, bad
from puna.server.generation import Piece, Whole
from puna.server.openai import wire
from puna.server.openai.fields import Sampling
from puna.server.openai.formats import ResponseFormat
from puna.server.openai.messages import (
    Tool,
    ToolChoice,
    Turn,
    as_text_reads,
    check_choice,
    use_of,
)
from puna.server.replies import dumps
from puna.server.service import Service
from puna.server.strict import Route


class ChatRequest(Sampling):
    harmless: ClassVar[tuple[str, ...]] = (
        *Sampling.harmless, "reasoning_effort", "verbosity", "prediction",
    )  # fmt: skip

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError(
                "needs",
                "top_logprobs needs logprobs: true, found {value}",
                {"value": self.logprobs, "field": "top_logprobs"},
            )
        check_choice(self.tool_choice, self.tools)
        return self

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        limits = {self.max_completion_tokens, self.max_tokens} - {None}
        if len(limits) > 1:
            raise bad(
                "max_tokens",
                f"max_tokens ({self.max_tokens}) and max_completion_tokens ({self.max_completion_tokens}) "
                "mean the same, give one",
            )
        top = (self.top_logprobs or 0) if self.logprobs else None
        return self.params(defaults, logprobs=top, max_tokens=limits.pop() if limits else None)


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=Route)

    @router.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation, at once or as a stream."""
        call = await begin(service, body, http)
        whole = partial(_completion, call, body)
        return await wire.answer(service, call, body, http, _chunks(call, body), whole)

    return router


async def begin(service: Service, body: ChatRequest, http: HttpRequest) -> Call:
    """Start what a chat request asks for. Raises ApiError."""
    n = body.n or 1
    if n > service.config.max_choices:
        raise bad("n", f"n must be at most {service.config.max_choices}, got {n}")
    chat = Chat(
        body.model,
        [as_text_reads(turn) for turn in body.messages],
        body.sampling,
        use_of(body.tools, body.tool_choice, parallel=body.parallel_tool_calls is not False),
        form=None if body.response_format is None else body.response_format.grammar_for,
        n=n,
        tier=body.service_tier,
        cache_salt=body.cache_salt,
    )
    return await begin_chat(service, http, "chat", chat)


def _message(call: Call, found: Whole) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": found.text or (None if found.calls else ""),
        "refusal": None,
        "annotations": [],
    }
    if found.calls:
        message["tool_calls"] = [wire.tool_call(made, i, call.id) for i, made in enumerate(found.calls)]
    return message


def _completion(call: Call, body: ChatRequest, found: Sequence[Whole]) -> dict[str, Any]:
    tokenizer = call.served.tokenizer
    return {
        "id": f"chatcmpl-{call.id}",
        "object": "chat.completion",
        "created": call.created,
        "model": call.model,
        "choices": [
            {
                "index": i,
                "message": _message(call, answer),
                "logprobs": wire.chat_logprobs(tokenizer, answer.logprobs) if body.logprobs else None,
                "finish_reason": answer.finish,
            }
            for i, answer in enumerate(found)
        ],
        "usage": wire.usage(call),
        "service_tier": call.tier,
        "system_fingerprint": wire.FINGERPRINT,
    }


async def _chunks(call: Call, body: ChatRequest) -> AsyncIterator[bytes]:
    """Chunks of the stream; written by hand where there is one for each token."""
    head = (
        f'data: {{"id":"chatcmpl-{call.id}","object":"chat.completion.chunk","created":{call.created},'
        f'"model":{dumps(call.model).decode()},"service_tier":"{call.tier}",'
        f'"system_fingerprint":"{wire.FINGERPRINT}",'
    ).encode()
    tail = b',"usage":null}\n\n' if body.wants_usage else b"}\n\n"
    begun: set[int] = set()
    n_calls: dict[int, int] = {}
    try:
        async for piece in call.pieces():
            index = piece.choice
            if index not in begun:
                begun.add(index)
                yield head + _choice(index, {"role": "assistant", "content": "", "refusal": None}) + tail
            if piece.text or (piece.logprobs and not piece.calls):
                yield head + _text(call, body, piece) + tail
            for made in piece.calls:
                number = n_calls.get(index, 0)
                n_calls[index] = number + 1
                delta = {"tool_calls": [{"index": number, **wire.tool_call(made, number, call.id)}]}
                yield head + _choice(index, delta) + tail
            if piece.finish is not None:
                yield head + _choice(index, {}, piece.finish) + tail
        if body.wants_usage:
            yield head + b'"choices":[],"usage":' + dumps(wire.usage(call)) + b"}\n\n"
        yield wire.DONE
    except ApiError as error:
        yield wire.error_event(error)


def _text(call: Call, body: ChatRequest, piece: Piece) -> bytes:
    logprobs = b"null"
    if body.logprobs:
        logprobs = dumps(wire.chat_logprobs(call.served.tokenizer, piece.logprobs))
    return b'"choices":[{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null}]' % (
        piece.choice,
        dumps(piece.text),
        logprobs,
    )


def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
    return b'"choices":' + dumps(
        [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]
    )
