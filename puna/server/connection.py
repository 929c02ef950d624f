"""HTTP/1.1 of the server: uvicorn's, with limits on what is no body.

Without them whoever sends headers and no end of them fills the memory, and whoever sends none keeps a
connection for as long as it likes. Headers behind a body (trailers) are dropped: those of the request have
been looked at by then, here or by a proxy before us.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MOST_HEAD = 64 << 10  # bytes of a request line and its headers
MOST_HEADERS = 200
HEAD_S = 30.0  # that they may take
_LINGER_S = 1.0


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_head = True  # what comes now, or next, is a head
        self._n_head = 0  # bytes of it so far; of a body, those that were neither body nor headers
        self._n_trailers = 0
        self._n_heard = 0  # calls of the parser
        self._is_refused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        n_heard = self._n_heard
        self._n_head += len(data)
        super().data_received(data)
        if not self._is_head and self._n_heard != n_heard:
            self._n_head = 0
        if self._n_head > MOST_HEAD:
            self._refuse_head()

    def on_message_begin(self) -> None:
        if self._is_refused:
            return
        super().on_message_begin()
        self._is_head, self._n_trailers = True, 0
        if self._timer is None:
            self._expect_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._n_heard += 1
        if self._is_head:
            super().on_header(name, value)
            return
        self._n_trailers += len(name) + len(value)
        if self._n_trailers > MOST_HEAD:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        if self._is_refused:
            return
        self._stop_timer()
        self._is_head, self._n_head = False, 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.headers) > MOST_HEADERS or size > MOST_HEAD:
            self._refuse_head()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._n_heard += 1
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._n_heard += 1
        if not self._is_refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser does not read: uvicorn's words for it, in the form of all other errors."""
        self._refuse(400, "the request must be HTTP/1.1 (RFC 9112), it is not", "bad_http")

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        if self._n_head:
            found = f"a request line and its headers may take {HEAD_S:g} seconds, these took more"
            self._refuse(408, f"{found}; send them at once", "timeout")
        else:
            self.transport.close()  # nobody has asked for anything

    def _refuse_head(self) -> None:
        found = f"headers may be {MOST_HEADERS} and have {MOST_HEAD:,} bytes, these are or have more"
        self._refuse(431, f"{found}; send fewer", "headers_too_large")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer, and read nothing more."""
        if self._is_refused:
            return
        self._is_refused = True
        self._stop_timer()
        if self.transport.is_closing():
            return
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        head = f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        # at once, what is still under way would make the client's machine forget the answer
        self.loop.call_later(_LINGER_S, self.transport.close)
