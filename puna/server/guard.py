"""What a request may be before anybody reads it: the size of its body, the time to send it, and who sends it
where no key says so."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from puna.server.batches.inside import LINE
from puna.server.errors import ApiError

if TYPE_CHECKING:
    from puna.server.config import ServerConfig
    from puna.server.errors import Dialects

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_HOST = re.compile(r"(\[[^\]]*\]|[^:@]*)(?::[0-9]+)?")
_AROUND = 64 << 10  # bytes of a form beside its file


class Hearing(Protocol):
    """Who is told of requests that got an error."""

    def refused(self, scope: Message, error: ApiError, /) -> None: ...


class Guarded(Protocol):
    """What stands behind: service.Service, or the front of several."""

    @property
    def config(self) -> ServerConfig: ...

    @property
    def dialects(self) -> Dialects: ...

    @property
    def watch(self) -> Hearing: ...

    @property
    def requires_keys(self) -> bool: ...


_BODY_S = 60.0  # from one part of a body to the next


class _Refused(Exception):
    pass


class Guard:
    """ASGI middleware; pure, because streams must not be copied."""

    def __init__(self, app: App, service: Guarded) -> None:
        self._app = app
        self._service = service
        config = service.config
        self._most = config.max_body_mb << 20
        self._most_of_forms = (config.max_file_mb << 20) + _AROUND  # they are not held in memory

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if refused := self._stranger(scope, headers) or _encoded(headers):
            return await self._refuse(scope, receive, send, refused)
        most = self._most_of_forms if scope["path"] == "/v1/files" else self._most
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > most:
            return await self._refuse(scope, receive, send, _too_large(most))
        n_read, is_whole, has_begun = 0, False, False
        problem: ApiError | None = None

        async def counted() -> Message:
            nonlocal n_read, is_whole, problem
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout(_BODY_S):
                    message = await receive()
            except TimeoutError:
                problem = _too_slow()
                raise _Refused from None
            n_read += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if n_read > most:
                problem = _too_large(most)
                raise _Refused
            return message

        async def noted(message: Message) -> None:
            nonlocal has_begun
            if problem is not None and not has_begun:
                return  # what the framework says of a body that it could not read
            has_begun = True
            await send(message)

        with suppress(_Refused):
            await self._app(scope, counted, noted)
        if problem is not None and not has_begun:
            await self._refuse(scope, receive, send, problem)

    def _stranger(self, scope: Message, headers: Headers) -> ApiError | None:
        """What is wrong with a request that a foreign web page may have sent, through the user's browser.

        Where keys are asked for no page has one. Elsewhere a page may send what no preflight is needed for,
        and by a name of its own that resolves to this machine (DNS rebinding) it may read the answers too.
        """
        if self._service.requires_keys or LINE in scope:
            return None
        host, origin = headers.get("host", ""), headers.get("origin")
        if host and not is_own_name(_name(host), self._service.config):
            message = (
                f"this server is not called {_name(host)!r:.80}; call it by its address or as localhost, or "
                "let the operator set server_name"
            )
        elif origin is not None and not self._may_call(origin, host):
            message = (
                f"pages of {origin!r:.80} may not call this server; let the operator set cors_origin to it"
            )
        else:
            return None
        return ApiError(403, message, kind="permission_error", code="foreign_page")

    def _may_call(self, origin: str, host: str) -> bool:
        allowed = self._service.config.cors_origin
        return "*" in allowed or origin in allowed or urlsplit(origin).netloc == host

    async def _refuse(self, scope: Message, receive: Any, send: Any, error: ApiError) -> None:
        self._service.watch.refused(scope, error)
        body = self._service.dialects.body(scope, error)
        await JSONResponse(body, error.status, {"connection": "close"})(scope, receive, send)


def is_own_name(name: str, config: ServerConfig) -> bool:
    """Whether a server without keys is called by an address, as localhost, or as its operator calls it."""
    if name in ("localhost", config.host, *config.server_name) or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True  # a page of that address is one of this machine's: names are rebound, addresses are not


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    found = _HOST.fullmatch(host)
    return host if found is None else found[1].strip("[]").lower()


def _encoded(headers: Headers) -> ApiError | None:
    """Bodies come as they are: a few bytes that unfold to gigabytes are not unfolded at all."""
    found = headers.get("content-encoding", "identity").strip().lower()
    if found in ("identity", ""):
        return None
    message = f"a body must be sent as it is, this one has content-encoding {found!r:.80}; send it plain"
    return ApiError(415, message, code="unsupported_encoding")


def _too_slow() -> ApiError:
    message = f"a body may pause for {_BODY_S:g} seconds, this one did for longer; send it at once"
    return ApiError(408, message, code="timeout")


def _too_large(most: int) -> ApiError:
    return ApiError(
        413,
        f"a body may have {most:,} bytes, this one has more; send less (the operator sets max_body_mb)",
        code="request_too_large",
    )
