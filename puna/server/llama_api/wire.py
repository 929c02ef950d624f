"""Answers of the Llama API, whole and as events: start, progress, complete, metrics.

A stream ends with its connection. One that breaks off ends with an event named error, which the client
raises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from puna.server.calls import Call
from puna.server.errors import ApiError, body_of
from puna.server.generation import Whole
from puna.server.moderation import Judged
from puna.server.openai.wire import tool_call
from puna.server.replies import dumps


def completion(call: Call, found: Whole) -> dict[str, Any]:
    calls = [tool_call(made, i, call.id) for i, made in enumerate(found.calls)]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": _text(found.text),
        "stop_reason": found.finish,
    }
    if calls:
        message["tool_calls"] = calls
    return {"id": call.id, "completion_message": message, "metrics": _metrics(call)}


async def events(call: Call) -> AsyncIterator[bytes]:
    n_calls, has_begun = 0, False
    try:
        async for piece in call.pieces():
            if not has_begun:
                has_begun = True
                yield _event(call, "start", _text(""))
            if piece.text:
                yield _event(call, "progress", _text(piece.text))
            for made in piece.calls:
                whole = tool_call(made, n_calls, call.id)
                delta = {"type": "tool_call", "id": whole["id"], "function": whole["function"]}
                n_calls += 1
                yield _event(call, "progress", delta)
            if piece.finish is not None:
                yield _event(call, "complete", _text(""), stop_reason=piece.finish)
                yield _event(call, "metrics", _text(""), metrics=_metrics(call))
    except ApiError as error:
        yield b"event: error\ndata: " + dumps(body_of(error)) + b"\n\n"


def moderation(found: Judged) -> dict[str, Any]:
    """A result for each message, with the guard's own names of categories."""
    results = [{"flagged": made.is_unsafe, "flagged_categories": made.categories} for made in found.verdicts]
    return {"model": found.call.model, "results": results}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _metrics(call: Call) -> list[dict[str, Any]]:
    counts = {
        "num_completion_tokens": call.n_output,
        "num_prompt_tokens": call.n_prompt,
        "num_total_tokens": call.n_prompt + call.n_output,
    }
    return [{"metric": name, "value": value, "unit": "tokens"} for name, value in counts.items()]


def _event(call: Call, kind: str, delta: dict[str, Any], **more: Any) -> bytes:
    event = {"event_type": kind, "delta": delta, **more}
    return b"data: " + dumps({"id": call.id, "event": event}) + b"\n\n"
