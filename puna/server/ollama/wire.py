"""What Ollama's answers share: lines of JSON, how long things took, log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.core import TokenLogprob, UnknownModel
from puna.server.calls import Call
from puna.server.errors import ApiError
from puna.server.generation import Piece, Whole
from puna.server.ollama.fields import OFF, Asked, KeepAlive, Options, is_let_go
from puna.server.openai.wire import finite, token_text
from puna.server.replies import dumps
from puna.server.service import Service
from puna.server.sse import Stream
from puna.server.strict import Route
from puna.text.tokenizer import Tokenizer
from puna.text.tools import ToolCall

LINES = {"content-type": "application/x-ndjson"}
FOREVER = "9999-12-31T23:59:59Z"  # when models that stay are unloaded


class AnyType(Route):
    """A route that reads bodies as JSON whatever their type is called, as Ollama does: `curl -d`, which its
    documentation shows, calls them forms, and some clients nothing.

    Those of web pages (which have an origin) have to say application/json, for which a browser asks the
    server whether that page may (CORS).
    """

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(http: HttpRequest) -> Response:
            if "origin" not in Headers(scope=http.scope):
                MutableHeaders(scope=http.scope)["content-type"] = "application/json"
            return await handler(http)

        return handle


def error_body(error: ApiError) -> dict[str, Any]:
    """Ollama's shape."""
    return {"error": error.message}


def line(data: Any) -> bytes:
    return dumps(data) + b"\n"


def moment(seconds: float | None = None) -> str:
    """RFC 3339 of a time in seconds since 1970, or of now."""
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return when.isoformat().replace("+00:00", "Z")


def head(call: Call) -> dict[str, Any]:
    return {"model": call.model, "created_at": moment()}


def measures(call: Call) -> dict[str, int]:
    """Counts, and times in nanoseconds: of the prompt up to the first token, of the answer from there on."""
    timing = call.timing()
    spent = {
        "total_duration": call.load_s + timing.total_s,
        "load_duration": call.load_s,
        "prompt_eval_duration": timing.prefill_s,
        "eval_duration": timing.total_s - timing.queue_s - timing.prefill_s,
    }
    durations = {name: round(seconds * 1e9) for name, seconds in spent.items()}
    return {**durations, "prompt_eval_count": call.n_prompt, "eval_count": call.n_output}


def done(call: Call, finish: str) -> dict[str, Any]:
    """The fields that end an answer; calls of tools are a way to stop."""
    return {"done": True, "done_reason": "stop" if finish == "tool_calls" else finish, **measures(call)}


def logprobs(tokenizer: Tokenizer, items: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text, spelled = token_text(tokenizer, token_id)
        return {"token": text, "logprob": finite(logprob), "bytes": spelled}

    return [
        {**entry(item.token_id, item.logprob), "top_logprobs": [entry(*other) for other in item.top]}
        for item in items
    ]


def tool_call(call: ToolCall, index: int) -> dict[str, Any]:
    function = {"index": index, "name": call.name, "arguments": call.arguments}
    return {"function": function}


def let_go(service: Service, call: Call, http: HttpRequest, keep_alive: KeepAlive | None) -> bool:
    """Unload the model after the call, where the request says so and whoever sent it may."""
    if not is_let_go(keep_alive):
        return False
    try:
        service.check_operator(http)
    except ApiError:
        return False
    with suppress(UnknownModel):  # somebody else was faster
        service.models.let_go(call.model)
    return True


def ignored(raw: Mapping[str, Any], *, is_obeyed: bool = False) -> dict[str, str]:
    """The header that names what a request said and did nothing, as the fields say which those are;
    `is_obeyed` is of keep_alive.
    """
    options = raw.get("options") or {}
    names = [name for name in (*Asked.harmless, "keep_alive") if raw.get(name) is not None]
    if is_obeyed:
        names.remove("keep_alive")
    names += [f"options.{name}" for name in (*Options.harmless, *OFF) if options.get(name) is not None]
    return {"x-puna-ignored": ", ".join(sorted(names))} if names else {}


async def answer(
    service: Service,
    call: Call,
    body: Asked,
    http: HttpRequest,
    of_piece: Callable[[Piece], dict[str, Any]],
    of_whole: Callable[[Whole], dict[str, Any]],
    last: Callable[[], dict[str, Any]] = dict,
) -> Response:
    """Lines as the answer comes, or one object. `of_piece` and `of_whole` write what is said, `last` what an
    answer has at its end beside its measures."""
    is_obeyed = let_go(service, call, http, body.keep_alive)
    headers = {**call.headers, **ignored(await http.json(), is_obeyed=is_obeyed)}
    if not body.stream:
        (whole,) = await call.answers(http)
        found = {**head(call), **of_whole(whole), **done(call, whole.finish), **last()}
        return Response(dumps(found), 200, headers, "application/json")
    chunks = _lines(call, body, of_piece, last)
    return Stream(chunks, call.cancel, stall_s=service.config.stall_timeout, headers={**headers, **LINES})


async def _lines(
    call: Call,
    body: Asked,
    of_piece: Callable[[Piece], dict[str, Any]],
    last: Callable[[], dict[str, Any]],
) -> AsyncIterator[bytes]:
    try:
        async for piece in call.pieces():
            if piece.finish is None:
                yield line({**head(call), **of_piece(piece), "done": False})
            else:
                yield line({**head(call), **of_piece(piece), **done(call, piece.finish), **last()})
    except ApiError as error:
        yield line(error_body(error))


def with_logprobs(body: Asked, call: Call, items: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The field of log-probabilities, where they were asked for."""
    return {"logprobs": logprobs(call.served.tokenizer, items)} if body.logprobs and items else {}
