"""A line of a batch through the whole application, without a socket: every check, limit and error of a
request from outside is there, and any route can be in a batch.

The line goes in the scope of the request under LINE, where nobody outside can put anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import HTTPConnection

from puna.core import SamplingParams

LINE = "puna.batch_line"
Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


@dataclass(frozen=True, slots=True)
class BatchLine:
    """Who asks, and what makes the same line the same request whenever it is run again.

    What a line used is in the ledger under `request_id`, so that one that is run twice, because a server
    died after counting it, is there once. With a seed of its own it also says the same both times. A line
    that is cancelled is not in the ledger: it has no answer, or is run again.
    """

    batch_id: str
    number: int
    key_id: str

    @property
    def request_id(self) -> str:
        return hashlib.sha256(f"{self.batch_id}:{self.number}".encode()).hexdigest()[:32]

    def seeded(self, params: SamplingParams, choice: int) -> SamplingParams:
        """`params` with a seed that is the same in every run; one that the line gives stays."""
        if params.seed is not None:
            return params
        digest = hashlib.sha256(f"{self.batch_id}:{self.number}:{choice}".encode()).digest()
        return replace(params, seed=int.from_bytes(digest[:8], "little"))


def line_of(http: HTTPConnection) -> BatchLine | None:
    """The line of a batch that a request is; None for requests from outside."""
    line = http.scope.get(LINE)
    assert line is None or isinstance(line, BatchLine)
    return line


@dataclass(slots=True)
class Answer:
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            return {"error": {"message": "the server failed; see its log", "type": "server_error"}}


async def send(app: App, line: BatchLine, path: str, content: bytes, gone: asyncio.Event) -> Answer:
    """What the application answers to a POST of JSON. Once `gone` is set, it is told that the client is."""
    answer = Answer()
    is_sent = False

    async def receive() -> Message:
        nonlocal is_sent
        if not is_sent:
            is_sent = True
            return {"type": "http.request", "body": content, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def take(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]
            }
        else:
            answer.body += message.get("body", b"")

    scope: Message = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())],
        "client": None,
        "server": None,
        "state": {},
        LINE: line,
    }
    task = asyncio.ensure_future(app(scope, receive, take))
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()  # nothing, unless we are
    if not task.cancelled():
        task.exception()  # the application has answered with what it says of it
    return answer
