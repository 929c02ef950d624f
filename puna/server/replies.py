"""Answers to a call, at once or as a stream, in whatever words an API has for them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.server.calls import Call
from puna.server.generation import Whole
from puna.server.service import Service
from puna.server.sse import Stream

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(data: Any) -> bytes:
    try:
        return _encode(data).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which a client may have named a field
        return json.dumps(data).encode()


async def reply(
    service: Service,
    call: Call,
    http: HttpRequest,
    *,
    is_stream: bool,
    chunks: AsyncIterator[bytes],
    whole: Callable[[Sequence[Whole]], dict[str, Any]],
    headers: Mapping[str, str],
    ping: bytes = b"",
) -> Response:
    """A stream of `chunks`, or the answer at once as `whole` writes it. While nothing comes, a stream has
    `ping`. Raises ApiError where the answer broke off.
    """
    headers = {**call.headers, **headers}
    if is_stream:
        stall_s = service.config.stall_timeout
        return Stream(chunks, call.cancel, stall_s=stall_s, headers=headers, ping=ping)
    return Response(dumps(whole(await call.answers(http))), 200, headers, "application/json")
