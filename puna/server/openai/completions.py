"""POST /v1/completions: texts and token ids to continue, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.core import Request, SamplingParams, TokenLogprob
from puna.server.calls import Call, Choices, choices
from puna.server.errors import ApiError, bad
from puna.server.generation import Finish, Whole
from puna.server.infill import infill
from puna.server.openai import wire
from puna.server.openai.fields import Sampling
from puna.server.openai.formats import ResponseFormat
from puna.server.replies import dumps
from puna.server.served import ServedModel
from puna.server.service import LARGE, Service
from puna.server.strict import Route

_MOST_LOGPROBS = 20


class CompletionRequest(Sampling):
    harmless: ClassVar[tuple[str, ...]] = (*Sampling.harmless, "best_of")

    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None  # the answer stands between each prompt and this
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=_MOST_LOGPROBS)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = 16  # OpenAI's default; 0 with echo scores the prompt
    response_format: ResponseFormat | None = None  # vLLM's

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [item for item in self.prompt if not isinstance(item, int)]
        return texts or [[item for item in self.prompt if isinstance(item, int)]]

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        return self.params(defaults, logprobs=self.logprobs, max_tokens=self.max_tokens or 1)


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["OpenAI"], route_class=Route)

    @router.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, http: HttpRequest) -> Response:
        """Continue a text."""
        call = await _begin(service, body, http)
        whole = partial(_completion, call, body)
        return await wire.answer(service, call, body, http, _chunks(call, body), whole)

    return router


def _check(service: Service, body: CompletionRequest) -> None:
    n, prompts = body.n or 1, body.prompts
    if not prompts or not (body.suffix or all(prompts)):
        raise bad("prompt", "prompt must have at least one token, found an empty one")
    most = service.config.max_choices
    if n * len(prompts) > most:
        raise bad("n", f"prompts times n must be at most {most}, got {len(prompts)} times {n}")
    if body.suffix and not isinstance(prompts[0], str):
        raise bad("suffix", "suffix needs a prompt of text, found token ids; write their tokens out yourself")
    if body.suffix and body.echo:
        raise bad("echo", "echo and suffix cannot be had together; take one of them out")
    if body.max_tokens == 0 and not body.echo:
        raise bad("max_tokens", "max_tokens must be at least 1 without echo, got 0")
    if body.echo and body.stream and body.logprobs is not None:
        raise bad("stream", "echo with logprobs comes at once, stream must be false")


async def _begin(service: Service, body: CompletionRequest, http: HttpRequest) -> Call:
    _check(service, body)

    def make(model: ServedModel) -> list[Choices]:
        held = body.response_format
        grammar = None if held is None else held.grammar_for(model)
        params = body.sampling(model.default_params)
        is_scored = bool(body.echo) and body.logprobs is not None
        prompts: list[Choices] = []
        for prompt in body.prompts:

            def request(chosen: SamplingParams, prompt: str | list[int] = prompt) -> Request:
                if body.suffix and isinstance(prompt, str):
                    made = infill(model, prompt, body.suffix, chosen)
                else:
                    made = model.text_request(prompt, chosen, is_scored=is_scored)
                if grammar is not None:
                    made.grammar = grammar.start()
                return made

            prompts.append(choices(request(params), body.n or 1, request))
        return prompts

    is_slow = body.response_format is not None or sum(map(len, body.prompts)) > LARGE
    return await service.begin(
        http,
        "completions",
        body.model,
        make,
        is_slow=is_slow,
        param="prompt",
        tier=body.service_tier,
        cache_salt=body.cache_salt,
    )


class _Text:
    """Text and log-probabilities of one choice, in the layout of completions: parallel lists and offsets."""

    def __init__(self, call: Call) -> None:
        self._tokenizer = call.served.tokenizer

    def logprobs(self, items: Sequence[TokenLogprob | int], offset: int = 0) -> dict[str, list[Any]]:
        """`items` are scored tokens, or bare ids (the first of a prompt, which nothing predicts)."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for item in items:
            token_id = item if isinstance(item, int) else item.token_id
            text = wire.token_text(self._tokenizer, token_id)[0]
            tokens.append(text)
            offsets.append(offset)
            offset += len(text)
            if isinstance(item, int):
                values.append(None)
                tops.append(None)
            else:
                values.append(wire.finite(item.logprob))
                top = {wire.token_text(self._tokenizer, i)[0]: wire.finite(p) for i, p in reversed(item.top)}
                tops.append({**top, text: wire.finite(item.logprob)})
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _completion(call: Call, body: CompletionRequest, found: Sequence[Whole]) -> dict[str, Any]:
    return {
        "id": f"cmpl-{call.id}",
        "object": "text_completion",
        "created": call.created,
        "model": call.model,
        "choices": [_choice(call, body, i, answer) for i, answer in enumerate(found)],
        "usage": wire.usage(call),
        "system_fingerprint": wire.FINGERPRINT,
    }


def _choice(call: Call, body: CompletionRequest, i: int, answer: Whole) -> dict[str, Any]:
    generation = call.generations[i]
    text, scored = answer.text, list[TokenLogprob | int](answer.logprobs)
    if body.max_tokens == 0:
        text, scored = "", []
    if body.echo:
        prompt = generation.request.prompt
        text = call.served.tokenizer.decode(prompt, skip_special=True) + text
        scored = [prompt[0], *generation.prompt_logprobs, *scored]
    return {
        "index": i,
        "text": text,
        "logprobs": None if body.logprobs is None else _Text(call).logprobs(scored),
        "finish_reason": _finish(body, answer.finish),
    }


def _finish(body: CompletionRequest, finish: Finish) -> Finish:
    """One who asked for no token at all has got as many as it wanted."""
    return "length" if body.max_tokens == 0 and finish == "stop" else finish


async def _chunks(call: Call, body: CompletionRequest) -> AsyncIterator[bytes]:
    head = (
        f'data: {{"id":"cmpl-{call.id}","object":"text_completion","created":{call.created},'
        f'"model":{dumps(call.model).decode()},"system_fingerprint":"{wire.FINGERPRINT}",'
    ).encode()
    tail = b',"usage":null}\n\n' if body.wants_usage else b"}\n\n"
    offsets = [0] * len(call.generations)

    def choice(index: int, text: str, logprobs: Any = None, finish: str | None = None) -> bytes:
        fields = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return head + b'"choices":[' + dumps(fields) + b"]" + tail

    try:
        if body.echo:
            for i, generation in enumerate(call.generations):
                text = call.served.tokenizer.decode(generation.request.prompt, skip_special=True)
                offsets[i] = len(text)
                yield choice(i, text)
        async for piece in call.pieces():
            i = piece.choice
            if body.max_tokens != 0 and (piece.text or piece.logprobs):
                scored = None
                if body.logprobs is not None:
                    scored = _Text(call).logprobs(piece.logprobs, offsets[i])
                offsets[i] += len(piece.text)
                yield choice(i, piece.text, scored)
            if piece.finish is not None:
                yield choice(i, "", None, _finish(body, piece.finish))
        if body.wants_usage:
            yield head + b'"choices":[],"usage":' + dumps(wire.usage(call)) + b"}\n\n"
        yield wire.DONE
    except ApiError as error:
        yield wire.error_event(error)
