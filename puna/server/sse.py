"""Answers on the wire: server-sent events (HTML Living Standard, 9.2), as a lean ASGI response.

A client that goes away is noticed while nothing is being sent, too: then `on_disconnect` cancels what was
being made, and the generator is read to its end so that it is counted. A client that reads too slowly holds
up its own answer, and is cut off after `stall_s` seconds without progress.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.responses import Response

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_TYPE = "text/event-stream; charset=utf-8"


async def when_gone(receive: Receive, then: Callable[[], None]) -> None:
    """Call `then` once the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    then()


class Stream(Response):
    """A response whose body is made as it goes."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        on_disconnect: Callable[[], None],
        *,
        stall_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.media_type = None
        self.init_headers({"cache-control": "no-cache", "content-type": _TYPE, **(headers or {})})
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self._chunks = chunks
        self._on_disconnect = on_disconnect
        self._stall_s = stall_s

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(when_gone(receive, self._on_disconnect))
        try:
            await self._send(send)
        finally:
            watch.cancel()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        is_reading = True
        try:
            await send(start)
            async for chunk in self._chunks:
                if not is_reading:
                    continue  # to its end, which comes soon: it is cancelled
                try:
                    async with asyncio.timeout(self._stall_s):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                except (TimeoutError, OSError):
                    is_reading = False
                    self._on_disconnect()
            if is_reading:
                await send({"type": "http.response.body", "body": b""})
        except OSError:
            pass  # the client went away
        finally:
            self._on_disconnect()
            async for _ in self._chunks:  # cut short: the rest is read so that it is counted
                pass
