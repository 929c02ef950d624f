"""Limits of what a request may be before anybody reads it: the size of its body, and the time to send it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from puna.server.errors import ApiError

if TYPE_CHECKING:
    from puna.server.config import ServerConfig
    from puna.server.errors import Dialects

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class Hearing(Protocol):
    """Who is told of requests that got an error."""

    def refused(self, scope: Message, error: ApiError, /) -> None: ...


class Guarded(Protocol):
    """What stands behind: calls.Service, or the front of several."""

    @property
    def config(self) -> ServerConfig: ...

    @property
    def dialects(self) -> Dialects: ...

    @property
    def watch(self) -> Hearing: ...


_BODY_S = 60.0  # from one part of a body to the next


class _TooLarge(Exception):
    pass


class Guard:
    """ASGI middleware; pure, because streams must not be copied."""

    def __init__(self, app: App, service: Guarded) -> None:
        self._app = app
        self._service = service
        self._most = service.config.max_body_mb << 20

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        most = self._most
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > most:
            return await self._refuse(scope, receive, send, most)
        n_read, is_whole, has_begun, is_too_large = 0, False, False, False

        async def counted() -> Message:
            nonlocal n_read, is_whole, is_too_large
            if is_whole:
                return await receive()
            async with asyncio.timeout(_BODY_S):
                message = await receive()
            n_read += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if n_read > most:
                is_too_large = True
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal has_begun
            if is_too_large and not has_begun:
                return  # what the framework says of a body that it could not read
            has_begun = True
            await send(message)

        with suppress(_TooLarge):
            await self._app(scope, counted, noted)
        if is_too_large and not has_begun:
            await self._refuse(scope, receive, send, most)

    async def _refuse(self, scope: Message, receive: Any, send: Any, most: int) -> None:
        error = ApiError(
            413,
            f"a body may have {most:,} bytes, this one has more; send less (the operator sets max_body_mb)",
            code="request_too_large",
        )
        self._service.watch.refused(scope, error)
        body = self._service.dialects.body(scope["path"], error)
        await JSONResponse(body, 413, {"connection": "close"})(scope, receive, send)
