"""Tokens and prompts: /tokenize, /detokenize, /apply-template, /score."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest

from puna.core import SamplingParams
from puna.server.openai import wire
from puna.server.openai.fields import Body
from puna.server.openai.messages import Tool, Turn, as_text_reads, definition
from puna.server.served import ServedModel
from puna.server.service import LARGE, Service
from puna.server.strict import Route

_Make = Callable[[ServedModel], dict[str, Any]]


class Tokenize(Body):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True  # the one that begins a text, where the model has one
    parse_special: bool = False  # names of control tokens become those tokens


class Detokenize(Body):
    model: str | None = None
    tokens: list[int]


class ApplyTemplate(Body):
    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1)]
    tools: list[Tool] | None = None


class Score(Body):
    model: str | None = None
    prompt: str | list[int]
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Puna"], route_class=Route)
    ask = partial(_ask, service)

    @router.post("/tokenize")
    async def tokenize(body: Tokenize, http: HttpRequest) -> dict[str, Any]:
        """The token ids of a text."""

        def encode(model: ServedModel) -> dict[str, Any]:
            bos = None if body.add_special_tokens else False
            ids = model.tokenizer.encode(body.prompt, bos=bos, special=body.parse_special)
            return {"tokens": ids, "count": len(ids), "max_model_len": model.context}

        return await ask(http, body.model, encode, len(body.prompt), "prompt")

    @router.post("/detokenize")
    async def detokenize(body: Detokenize, http: HttpRequest) -> dict[str, Any]:
        """The text of token ids."""

        def decode(model: ServedModel) -> dict[str, Any]:
            return {"prompt": model.tokenizer.decode(body.tokens)}

        return await ask(http, body.model, decode, len(body.tokens), "tokens")

    @router.post("/apply-template")
    async def apply_template(body: ApplyTemplate, http: HttpRequest) -> dict[str, Any]:
        """The prompt that a conversation becomes: as text to read, and as token ids, which count."""
        turns = [as_text_reads(turn) for turn in body.messages]
        tools = [definition(tool) for tool in body.tools] if body.tools else None

        def apply(model: ServedModel) -> dict[str, Any]:
            ids = list(model.chat_request(turns, model.default_params, tools=tools).prompt)
            return {"prompt": model.tokenizer.decode(ids), "tokens": ids}

        # A template is somebody's program: the event loop does not wait for it.
        return await ask(http, body.model, apply, LARGE + 1, "messages")

    @router.post("/score")
    async def score(body: Score, http: HttpRequest) -> dict[str, Any]:
        """The natural-log probability of every token of a text after the first."""
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=body.top_logprobs)
        call = await service.begin(
            http,
            "score",
            body.model or service.models.default,
            lambda model: [[model.text_request(body.prompt, params, is_scored=True)]],
            is_slow=len(body.prompt) > LARGE,
            param="prompt",
        )
        await call.answers(http)
        generation = call.generations[0]
        tokenizer = call.served.tokenizer
        content = wire.chat_logprobs(tokenizer, generation.prompt_logprobs)["content"]
        ids = list(generation.request.prompt)
        total = sum(wire.finite(item.logprob) for item in generation.prompt_logprobs)
        return {"model": call.model, "tokens": ids, "logprobs": content, "total_logprob": total}

    return router


async def _ask(
    service: Service, http: HttpRequest, name: str | None, make: _Make, size: int, param: str
) -> dict[str, Any]:
    """What `make` says, beside the event loop where `size` characters or tokens take it long."""
    model = name or service.models.default
    return await service.ask(http, model, make, is_slow=size > LARGE, param=param)
