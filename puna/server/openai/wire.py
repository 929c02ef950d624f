"""What OpenAI's answers share: usage, log-probabilities, chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import version
from math import isfinite
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.core import TokenLogprob
from puna.server.calls import Call
from puna.server.errors import ApiError, body_of
from puna.server.generation import Whole
from puna.server.openai.fields import Sampling, ignored
from puna.server.replies import dumps, reply
from puna.server.service import Service
from puna.text.tokenizer import Tokenizer
from puna.text.tools import ToolCall

DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"puna-{version('puna')}"  # what may change an answer to the same question with the same seed
_LEAST = -9999.0  # OpenAI's value for a token that is hardly possible; JSON has no infinity


def token_counts(n_input: int, n_cached: int, n_output: int) -> dict[str, Any]:
    """Usage in the words of responses and batches."""
    return {
        "input_tokens": n_input,
        "input_tokens_details": {"cached_tokens": n_cached},
        "output_tokens": n_output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": n_input + n_output,
    }


def usage(call: Call) -> dict[str, Any]:
    n_prompt, n_output = call.n_prompt, call.n_output
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_output,
        "total_tokens": n_prompt + n_output,
        "prompt_tokens_details": {"cached_tokens": call.n_cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def finite(logprob: float) -> float:
    return logprob if isfinite(logprob) else _LEAST


def token_text(tokenizer: Tokenizer, token_id: int) -> tuple[str, list[int]]:
    """A token as text, U+FFFD for parts of characters, and its bytes."""
    spelled = tokenizer.token_bytes(token_id)
    return spelled.decode("utf-8", "replace"), list(spelled)


def chat_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text, spelled = token_text(tokenizer, token_id)
        return {"token": text, "logprob": finite(logprob), "bytes": spelled}

    content = [
        {**entry(item.token_id, item.logprob), "top_logprobs": [entry(*other) for other in item.top]}
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


def tool_call(call: ToolCall, number: int, call_id: str) -> dict[str, Any]:
    """A call in a message; in a stream it has its index beside."""
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"id": f"call_{call_id[:20]}{number:04d}", "type": "function", "function": function}


async def answer(
    service: Service,
    call: Call,
    body: Sampling,
    http: HttpRequest,
    chunks: AsyncIterator[bytes],
    whole: Callable[[Sequence[Whole]], dict[str, Any]],
) -> Response:
    """A stream of `chunks`, or the answer at once as `whole` writes it, as the request wants it."""
    headers = ignored(body, await http.json())
    return await reply(
        service, call, http, is_stream=bool(body.stream), chunks=chunks, whole=whole, headers=headers
    )


def event(data: Any) -> bytes:
    return b"data: " + dumps(data) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """An answer that broke off after it began: the status has gone out already."""
    return event(body_of(error)) + DONE
