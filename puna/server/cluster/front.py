"""The front: the one door of all replicas, as an ASGI application.

It reads a request whole, lets the router choose a replica, and passes the answer on as it comes. Where a
replica dies before anything was sent, another one is asked, under the same id of the ledger's row; where it
dies later, the client gets an error in the words of its API. What a request may be and what it costs is the
replicas' business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from puna.server.cluster.merged import merged
from puna.server.cluster.prefixes import prompt_keys
from puna.server.cluster.wire import Envelope, Part, packed
from puna.server.config import ServerConfig
from puna.server.errors import ApiError, Dialects, unavailable
from puna.server.guard import Guard
from puna.server.logs import event
from puna.server.openai.wire import DONE
from puna.server.replies import dumps
from puna.server.sse import when_gone

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_TRIES = 3  # replicas that a request is sent to before somebody is told
_LARGE = 1 << 18  # bytes of a body that take longer to read than others should wait
_PATIENCE_S = 10.0  # for what is asked of every replica


class Front:
    """What requests share; run.serve drains it as it drains a Service."""

    def __init__(
        self, config: ServerConfig, handle: DeploymentHandle, replicas: Callable[[], list[str]]
    ) -> None:
        """`replicas` names those that can be asked now."""
        self.config = config
        self.handle = handle
        self.replicas = replicas
        self.calls: set[Passing] = set()
        self.is_draining = False
        self.dialects = Dialects()
        self.watch = self
        self._own = {"/health": self._health, "/ready": self._ready, "/metrics": self._metrics}

    @property
    def n_in_flight(self) -> int:
        return len(self.calls)

    def cut_off(self) -> None:
        """Whatever is in flight ends now."""
        for call in list(self.calls):
            call.cancel()

    @property
    def requires_keys(self) -> bool:
        return self.config.require_keys or not self.config.is_loopback

    async def start(self) -> None:
        """The replicas run: learn how they word errors."""
        self.dialects = await self.handle.dialects.remote()

    def refused(self, scope: Message, error: ApiError) -> None:
        """A request got an error that no replica made."""
        event("refused", logging.WARNING, path=scope["path"][:200], status=error.status, code=error.code)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        own = self._own.get(scope["path"]) if scope["method"] in ("GET", "HEAD") else None
        if own is not None:
            answer = await own(scope)
            return await answer(scope, receive, send)
        if self.is_draining:
            return await self._say(unavailable(_SHUTTING, 5), scope, receive, send)
        body = await _body(receive)
        if body is None:
            return
        keys = prompt_keys(body) if len(body) < _LARGE else await asyncio.to_thread(prompt_keys, body)
        passing = Passing(self, Envelope(packed(scope), body, keys))
        try:
            await passing.run(scope, receive, send)
        except ApiError as error:
            await self._say(error, scope, receive, send)

    async def _say(self, error: ApiError, scope: Message, receive: Receive, send: Send) -> None:
        self.refused(scope, error)
        answer = JSONResponse(self.dialects.body(scope["path"], error), error.status, error.headers)
        await answer(scope, receive, send)

    async def _health(self, scope: Message) -> Response:
        """200 while the process lives and can answer."""
        return JSONResponse({"status": "ok"})

    async def _ready(self, scope: Message) -> Response:
        """200 where a load balancer may send requests; 503 while draining, or without a replica."""
        n = len(self.replicas())
        state = "draining" if self.is_draining else "ready" if n else "no replicas"
        facts = {"status": state, "in_flight": len(self.calls), "replicas": n}
        return JSONResponse(facts, 200 if state == "ready" else 503)

    async def _metrics(self, scope: Message) -> Response:
        """Those of all replicas; or what the first says that does not show them to whoever asks."""
        found = await self._everywhere(scope)
        for head, body in found.values():
            if head.status != 200:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
                return Response(body, head.status, headers)
        text = merged({name: body.decode() for name, (_, body) in found.items()})
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _everywhere(self, scope: Message) -> dict[str, tuple[Part, bytes]]:
        """The answer of each replica to a request without a body; those that do not answer are left out."""

        async def one(name: str) -> tuple[str, Part, bytes]:
            envelope = Envelope(packed(scope), b"", replica=name)
            parts = [part async for part in self.handle.options(stream=True).answer.remote(envelope)]
            return parts[0].replica, parts[0], b"".join(part.body for part in parts)

        tasks = [asyncio.create_task(one(name)) for name in self.replicas()]
        done, late = await asyncio.wait(tasks, timeout=_PATIENCE_S) if tasks else (set(), set())
        for task in late:
            task.cancel()
        found = [task.result() for task in done if task.exception() is None]
        return {name: (head, body) for name, head, body in found}


class Passing:
    """One request on its way through."""

    def __init__(self, front: Front, envelope: Envelope) -> None:
        self._front = front
        self._envelope = envelope
        self._has_begun = False  # the client has seen the status
        self._kind = b""  # of its answer
        self._task = asyncio.current_task()
        self._is_cut = False
        self._is_gone = False
        front.calls.add(self)

    def cancel(self) -> None:
        """The time to drain is over."""
        self._is_cut = True
        self._stop()

    def _leave(self) -> None:
        self._is_gone = True
        self._stop()

    def _stop(self) -> None:
        assert self._task is not None
        self._task.cancel()

    async def run(self, scope: Message, receive: Receive, send: Send) -> None:
        """Raises ApiError where nothing was sent."""
        watch = asyncio.create_task(when_gone(receive, self._leave))
        seconds = self._front.config.timeout + _PATIENCE_S  # the replica's own limit comes first
        try:
            async with asyncio.timeout(seconds):
                await self._try_replicas(send)
        except TimeoutError:
            late = unavailable(f"no replica had an answer within {seconds:g} seconds; try again", 5)
            await self._break_off(late, scope, send)
        except asyncio.CancelledError:
            if not (self._is_cut or self._is_gone):
                raise
            assert self._task is not None
            self._task.uncancel()
            if self._is_cut:
                await self._break_off(unavailable(_SHUTTING, 5), scope, send)
        except ApiError as error:
            await self._break_off(error, scope, send)
        finally:
            watch.cancel()
            self._front.calls.discard(self)

    async def _try_replicas(self, send: Send) -> None:
        for left in reversed(range(_TRIES)):
            try:
                return await self._pass(send)
            except BackPressureError:
                raise unavailable("all replicas have as many requests as they take; try again", 1) from None
            except RayActorError as error:
                is_last = self._has_begun or not left
                event("replica_lost", logging.WARNING, request_id=self._envelope.id, is_retried=not is_last)
                if is_last:
                    raise _lost() from error
            except (RayError, RayServeException) as error:
                kind = type(error).__name__
                event("replica_failed", logging.ERROR, request_id=self._envelope.id, error=kind)
                raise ApiError(500, "the replica failed; see its log", kind="server_error") from error

    async def _pass(self, send: Send) -> None:
        """Ask a replica, and send on what it answers."""
        answer = self._front.handle.options(stream=True).answer.remote(self._envelope)
        is_whole = False
        try:
            async for part in answer:
                await self._send_part(part, send)
            await send({"type": "http.response.body", "body": b""})
            is_whole = True
        finally:
            if not is_whole:
                answer.cancel()

    async def _send_part(self, part: Part, send: Send) -> None:
        try:
            async with asyncio.timeout(self._front.config.stall_timeout):
                if part.status:
                    self._kind = dict(part.headers).get(b"content-type", b"")
                    self._has_begun = True
                    headers = [*part.headers, (b"x-puna-replica", part.replica.encode())]
                    start = {"type": "http.response.start", "status": part.status, "headers": headers}
                    await send(start)
                if part.body:
                    await send({"type": "http.response.body", "body": part.body, "more_body": True})
        except (TimeoutError, OSError):
            self._leave()  # a client that does not read, or that is not there
            await asyncio.sleep(0)

    async def _break_off(self, error: ApiError, scope: Message, send: Send) -> None:
        """Say so where the answer's form has words for it; else the connection ends before the answer."""
        if not self._has_begun:
            raise error
        self._front.refused(scope, error)
        body = dumps(self._front.dialects.body(scope["path"], error))
        if self._kind.startswith(b"text/event-stream"):
            last = b"event: error\ndata: " + body + b"\n\n"
            last = last if b'"type":"error"' in body else b"data: " + body + b"\n\n" + DONE
        elif self._kind.startswith(b"application/x-ndjson"):
            last = body + b"\n"
        else:
            raise ConnectionResetError(str(error)) from error
        with suppress(OSError):
            await send({"type": "http.response.body", "body": last})


_SHUTTING = "the server is shutting down; try another one, or again in a moment"


def _lost() -> ApiError:
    return ApiError(
        502,
        "the replica that was answering is gone; send the request again",
        kind="server_error",
        code="replica_lost",
    )


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where the client went away before it was sent."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def create_front(front: Front) -> Starlette:
    """The application; run.serve serves it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await front.start()
        yield

    app = Starlette(lifespan=lifespan)
    app.add_middleware(Guard, service=front)
    if front.config.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(front.config.cors_origin),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.router.default = front
    app.state.service = front
    return app
