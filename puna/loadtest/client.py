"""One request over a socket: sends it, notes when each piece of text arrives.

Times are taken in `data_received`, where the event loop hands over what the socket had, before anything is
parsed. A connection is used again where the server allows it, as clients of a service do.
"""

from __future__ import annotations

import asyncio
import json

from puna.core import WorkFailed
from puna.loadtest.exchange import Exchange
from puna.loadtest.http import Cut, Malformed
from puna.loadtest.load import Planned
from puna.loadtest.stats import Outcome
from puna.loadtest.target import Target

_PATHS = {"chat": "/chat/completions", "completions": "/completions"}


class _Failed(Exception):
    """A request got no complete response; `kind` as reports name it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._ended: asyncio.Future[None] | None = None
        self.used = 0  # exchanges that it has served

    @property
    def reusable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = self._loop.time()
        if self._exchange is None:
            self.close()  # nothing was asked
            return
        try:
            self._exchange.take(data, now)
        except Malformed as error:
            self._end(error)
            return
        if self._exchange.response.done:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._exchange is None:
            return
        if exc is not None:
            self._end(Cut(str(exc) or "the connection was reset"))
            return
        try:
            self._exchange.response.eof()
        except Cut as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        ended, exchange, self._ended, self._exchange = self._ended, self._exchange, None, None
        if error is not None or (exchange is not None and not exchange.response.keep_alive):
            self.close()
        if ended is None or ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    async def ask(self, request: bytes, exchange: Exchange) -> None:
        """Send and wait for the whole response. Raises Malformed."""
        assert self._transport is not None
        assert self._exchange is None
        self.used += 1
        self._exchange, self._ended = exchange, self._loop.create_future()
        self._transport.write(request)
        try:
            await self._ended
        finally:
            if self._exchange is not None:  # cancelled: what is still to come belongs to nobody
                self._exchange = None
                self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Client:
    """Sends requests to one server, each on a connection of its own while it lasts."""

    def __init__(self, target: Target, timeout: float = 600.0) -> None:
        self._target = target
        self._timeout = timeout
        self._idle: list[_Connection] = []

    async def send(self, planned: Planned, endpoint: str, start: float, scheduled: float) -> Outcome:
        """Run one request -> what it met; never raises for what a server does.

        `start` is the load's start on the loop's clock, `scheduled` when it was due, in seconds from there.
        """
        loop = asyncio.get_running_loop()
        outcome = Outcome(planned.index, planned.tenant.name, scheduled, started=loop.time() - start)
        exchange = Exchange()
        data = json.dumps(planned.body, separators=(",", ":")).encode()
        head = self._head("POST", _PATHS[endpoint], planned.tenant.key, len(data))
        try:
            async with asyncio.timeout(self._timeout):
                await self._ask(head + data, exchange)
        except _Failed as failed:
            outcome.error, outcome.detail = failed.kind, str(failed)
        except TimeoutError:
            outcome.error, outcome.detail = "timeout", f"no complete answer in {self._timeout:g} s"
        outcome.ended = loop.time() - start
        exchange.fill(outcome, start)
        return outcome

    async def models(self, key: str | None) -> list[str]:
        """Names of /v1/models. Raises WorkFailed."""
        where = f"{self._target.authority}{self._target.base}/models"
        exchange = Exchange()
        try:
            async with asyncio.timeout(self._timeout):
                await self._ask(self._head("GET", "/models", key, 0), exchange)
        except _Failed as failed:
            raise WorkFailed(f"{where} must list models, found {failed.kind}: {failed}; is it up?") from None
        except TimeoutError:
            raise WorkFailed(f"{where} must list models, found no answer in {self._timeout:g} s") from None
        status, text = exchange.response.status, exchange.text
        if status != 200:
            raise WorkFailed(
                f"{where} must list models, found status {status}: {text[:200]!r}; a server with keys needs "
                "--key, one without this list --model"
            )
        try:
            return [str(model["id"]) for model in json.loads(text)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise WorkFailed(f"{where} must list models, found {text[:80]!r}; give --model") from None

    def close(self) -> None:
        """Drop the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _head(self, method: str, path: str, key: str | None, length: int) -> bytes:
        lines = [
            f"{method} {self._target.base}{path} HTTP/1.1",
            f"Host: {self._target.authority}",
            "User-Agent: puna-loadtest",
            "Accept: text/event-stream, application/json",
            "Content-Type: application/json",
            f"Content-Length: {length}",
        ]
        if key is not None:
            lines.append(f"Authorization: Bearer {key}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def _ask(self, request: bytes, exchange: Exchange) -> None:
        """On an idle connection or a new one. Raises _Failed."""
        while True:
            connection = await self._connection()
            try:
                await connection.ask(request, exchange)
            except Malformed as error:
                begun, cut = exchange.response.begun, isinstance(error, Cut)
                # servers close idle connections whenever they like; that is no answer to this request
                if cut and not begun and connection.used > 1:
                    continue
                kind = "garbage" if not cut else "broken_stream" if begun else "connection"
                raise _Failed(kind, str(error)) from None
            if connection.reusable:
                self._idle.append(connection)
            return

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        loop = asyncio.get_running_loop()
        target = self._target
        try:
            _, made = await loop.create_connection(_Connection, target.host, target.port, ssl=target.tls)
        except OSError as error:
            raise _Failed("connection", str(error)) from None
        return made
