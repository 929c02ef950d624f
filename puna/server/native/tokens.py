"""Tokens and prompts: /tokenize, /detokenize, /apply-template, /score."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest

from puna.core import PunaError, SamplingParams
from puna.server.calls import LARGE, Service
from puna.server.errors import from_puna
from puna.server.openai import wire
from puna.server.openai.fields import Body
from puna.server.openai.messages import Tool, Turn, as_text_reads, definition, has_images, n_characters


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
    router = APIRouter(tags=["Puna"])

    @router.post("/tokenize")
    async def tokenize(body: Tokenize, http: HttpRequest) -> dict[str, Any]:
        """The token ids of a text."""
        service.authenticate(http)
        with await service.use(http, body.model or service.models.default) as model:
            bos = None if body.add_special_tokens else False
            prompt, special = body.prompt, body.parse_special
            ids = await _tried(lambda: model.tokenizer.encode(prompt, bos=bos, special=special), len(prompt))
            return {"tokens": ids, "count": len(ids), "max_model_len": model.context}

    @router.post("/detokenize")
    async def detokenize(body: Detokenize, http: HttpRequest) -> dict[str, Any]:
        """The text of token ids."""
        service.authenticate(http)
        with await service.use(http, body.model or service.models.default) as model:
            ids = body.tokens
            return {"prompt": await _tried(lambda: model.tokenizer.decode(ids), len(ids), "tokens")}

    @router.post("/apply-template")
    async def apply_template(body: ApplyTemplate, http: HttpRequest) -> dict[str, Any]:
        """The prompt that a conversation becomes: as text to read, and as token ids, which count."""
        service.authenticate(http)
        with await service.use(http, body.model or service.models.default) as model:
            turns = [as_text_reads(turn) for turn in body.messages]
            tools = [definition(tool) for tool in body.tools] if body.tools else None

            def applied() -> dict[str, Any]:
                ids = list(model.chat_request(turns, model.default_params, tools=tools).prompt)
                return {"prompt": model.tokenizer.decode(ids), "tokens": ids}

            size = LARGE + 1 if has_images(turns) else n_characters(turns)
            found: dict[str, Any] = await _tried(applied, size, "messages")
            return found

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


async def _tried(make: Callable[[], Any], size: int, param: str = "prompt") -> Any:
    """What `make` gives, beside the event loop where `size` characters or tokens take it long."""
    try:
        return await asyncio.to_thread(make) if size > LARGE else make()
    except PunaError as error:
        raise from_puna(error, param) from None
