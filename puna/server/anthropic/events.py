"""Messages on the wire, whole and as events; the events of a message add up to the whole one.

message_start says how much of the prompt came from the cache, which is known with the first token: until then
there are pings.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from puna.server.anthropic.errors import error_event
from puna.server.calls import Call
from puna.server.errors import ApiError
from puna.server.generation import Finish, Whole
from puna.server.replies import dumps
from puna.text.tools import ToolCall

PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def message(call: Call, max_tokens: int, found: Whole) -> dict[str, Any]:
    content = [
        _text(part) if isinstance(part, str) else _tool_use(call, i, part, part.arguments)
        for i, part in enumerate(found.blocks)
    ]
    end = _end(call, max_tokens, found.finish, found.stop)
    return {**_head(call), "content": content, **end, "usage": _usage(call, call.n_output)}


async def events(call: Call, max_tokens: int) -> AsyncIterator[bytes]:
    index, is_in_text, has_begun = 0, False, False
    try:
        async for piece in call.pieces():
            if not has_begun:
                has_begun = True
                yield _event("message_start", message={**_head(call), "usage": _usage(call, 0)})
            if piece.text and not is_in_text:
                is_in_text = True
                yield _event("content_block_start", index=index, content_block=_text(""))
            if piece.text:
                yield _text_delta(index, piece.text)
            if is_in_text and (piece.calls or piece.finish is not None):
                yield _event("content_block_stop", index=index)
                is_in_text, index = False, index + 1
            for made in piece.calls:
                block = _tool_use(call, index, made, {})
                delta = {"type": "input_json_delta", "partial_json": made.arguments_json}
                yield _event("content_block_start", index=index, content_block=block)
                yield _event("content_block_delta", index=index, delta=delta)
                yield _event("content_block_stop", index=index)
                index += 1
            if piece.finish is not None:
                end = _end(call, max_tokens, piece.finish, piece.stop)
                yield _event("message_delta", delta=end, usage=_total(call, call.n_output))
        yield _event("message_stop")
    except ApiError as error:
        yield error_event(error, call.id)


def _head(call: Call) -> dict[str, Any]:
    return {
        "id": f"msg_{call.id}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
    }


def _end(call: Call, max_tokens: int, finish: Finish, stop: str | int | None) -> dict[str, Any]:
    """Why the answer ended, and the stop sequence that did it."""
    sequence: str | None = None
    if finish == "tool_calls":
        reason = "tool_use"
    elif finish == "content_filter":
        reason = "refusal"
    elif finish == "length":
        n_most = call.generations[0].request.params.max_tokens
        is_cut = n_most is not None and n_most < max_tokens
        reason = "model_context_window_exceeded" if is_cut else "max_tokens"
    elif isinstance(stop, str):
        reason, sequence = "stop_sequence", stop
    else:
        reason = "end_turn"
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None, "container": None}


def _total(call: Call, n_output: int) -> dict[str, Any]:
    """The prompt is counted in parts: what was computed, and what the cache had. Nothing is charged for what
    is put there.
    """
    n_cached = call.n_cached
    return {
        "input_tokens": call.n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_output,
        "output_tokens_details": None,
        "server_tool_use": None,
    }


def _usage(call: Call, n_output: int) -> dict[str, Any]:
    rest = {"cache_creation": None, "inference_geo": None, "service_tier": "standard"}
    return {**_total(call, n_output), **rest}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _tool_use(call: Call, index: int, made: ToolCall, arguments: Any) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": f"toolu_{call.id[:20]}{index:04d}",
        "name": made.name,
        "input": arguments,
        "caller": {"type": "direct"},
    }


def _event(name: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), dumps({"type": name, **fields}))


def _text_delta(index: int, text: str) -> bytes:
    """The one event that comes for every token."""
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
        b'"delta":{"type":"text_delta","text":%b}}\n\n' % (index, dumps(text))
    )
