"""Answers on the wire: server-sent events (HTML Living Standard, 9.2), as a lean ASGI response.

A client that goes away is noticed while nothing is being sent, too: then `on_disconnect` cancels what was
being made, and the generator is read to its end so that it is counted. A client that reads too slowly holds
up its own answer, and is cut off after `stall_s` seconds without progress. Where an API has an event that
says nothing, it is sent after every `PING_S` seconds without another one, so that nobody on the way takes a
long prompt for a dead connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from starlette.responses import Response

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PING_S = 10.0
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
        ping: bytes = b"",
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
        self._ping = ping
        self._n_sent = 0
        self._is_sending = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(when_gone(receive, self._on_disconnect))
        try:
            await self._send(send)
        finally:
            watch.cancel()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        helpers: list[asyncio.Task[None]] = []
        try:
            await send(start)
            if self._ping:
                helpers.append(asyncio.create_task(self._send_pings(send)))
            # one limit for all parts, which the watch sets: to set one for each costs more than to send it
            async with asyncio.timeout(None) as limit:
                helpers.append(asyncio.create_task(self._watch_reader(limit)))
                async for chunk in self._chunks:
                    await self._send_part(send, chunk)
                await self._send_part(send, b"", more=False)
        except (TimeoutError, OSError):
            pass  # the client went away, or left it unread
        finally:
            for helper in helpers:
                helper.cancel()
            self._on_disconnect()
            async for _ in self._chunks:  # cut short: the rest is read so that it is counted
                pass

    async def _send_part(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self._n_sent += 1
        self._is_sending = True
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._is_sending = False

    async def _watch_reader(self, limit: asyncio.Timeout) -> None:
        """End the stream once one part has waited for its client for `stall_s` seconds."""
        n_seen, since = -1, 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._stall_s / 8)
            if not self._is_sending or n_seen != self._n_sent:
                n_seen, since = self._n_sent, loop.time()
            elif loop.time() - since >= self._stall_s * 7 / 8:
                limit.reschedule(loop.time())
                return

    async def _send_pings(self, send: Send) -> None:
        """Never while something else waits for a slow client: then the connection is anything but silent."""
        n_seen = self._n_sent
        while True:
            await asyncio.sleep(PING_S)
            if n_seen == self._n_sent and not self._is_sending:
                with suppress(OSError):  # the client went away, which is noticed elsewhere
                    await self._send_part(send, self._ping)
            n_seen = self._n_sent
