"""What an operator does with the models of a machine: /api/pull, /api/copy, /api/delete; and what is not done
here: /api/create, /api/push, /api/blobs.

These change the machine, so a key needs the scope "admin" where keys are asked for, and on another address
than loopback the operator has to allow them (allow_pull).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from threading import Event, Thread
from time import monotonic
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from puna.core import Cancelled, PunaError
from puna.server.errors import ApiError, bad, from_puna, unavailable
from puna.server.ollama import wire
from puna.server.ollama.fields import Named
from puna.server.openai.fields import Body
from puna.server.served import Library
from puna.server.service import Service
from puna.server.sse import Stream

_UNSUPPORTED = (
    "models are not made or published over this API; make one with `puna convert` or `puna quantize` on the "
    "server's machine, then serve its file"
)
_TICK_S = 0.1  # between two lines of progress

Update = dict[str, Any] | PunaError | None  # None: it is here


class PullRequest(Named):
    stream: bool = True
    insecure: bool | None = None


class DeleteRequest(Named):
    pass


class CopyRequest(Body):
    source: str
    destination: str


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["Ollama"], route_class=wire.AnyType)
    pulling: set[str] = set()

    @router.post("/api/pull", response_model=None)
    async def pull(body: PullRequest, http: HttpRequest) -> Response:
        """Bring a model onto this machine."""
        library = _library(service, http)
        if body.insecure:
            raise bad("insecure", "models are fetched over HTTPS only, insecure cannot be had; take it out")
        if pulling or service.is_draining:
            raise unavailable("another model is being pulled, or the server shuts down; try again later", 10)
        pulling.add(body.name)
        job = _Pull(library, body.name, lambda: pulling.discard(body.name))
        if body.stream:
            stall_s = service.config.stall_timeout
            return Stream(job.lines(), job.cancel, stall_s=stall_s, headers=wire.LINES)
        async for update in job.updates():
            if isinstance(update, PunaError):
                raise from_puna(update, "model")
        return JSONResponse({"status": "success"})

    @router.post("/api/copy", response_model=None)
    async def copy(body: CopyRequest, http: HttpRequest) -> Response:
        """Give a model another name."""
        library = _library(service, http)
        names = (body.source.removesuffix(":latest"), body.destination.removesuffix(":latest"))
        try:
            await asyncio.to_thread(library.copy, *names)
        except PunaError as error:
            raise from_puna(error, "source") from None
        return Response()

    @router.delete("/api/delete", response_model=None)
    async def delete(body: DeleteRequest, http: HttpRequest) -> Response:
        """Forget a model."""
        library = _library(service, http)
        if any(card.name == body.name for card in service.models.cards()):
            raise bad(
                "model", f"{body.name} is being served; stop the server, then run `puna rm {body.name}`"
            )
        try:
            await asyncio.to_thread(library.remove, body.name)
        except PunaError as error:
            raise from_puna(error, "model") from None
        return Response()

    @router.post("/api/create", response_model=None)
    @router.post("/api/push", response_model=None)
    @router.head("/api/blobs/{digest}", response_model=None)
    @router.post("/api/blobs/{digest}", response_model=None)
    async def unsupported(http: HttpRequest) -> Response:
        """Models are made and published by other means."""
        service.authenticate(http)
        raise bad("model", _UNSUPPORTED)

    return router


def _library(service: Service, http: HttpRequest) -> Library:
    """Raise ApiError 401 or 403 for whoever may not change what is on this machine."""
    service.authenticate(http, "admin" if service.accounts.requires_keys else "inference")
    config = service.config
    if not (config.is_loopback or config.allow_pull):
        raise ApiError(
            403,
            f"models of a server on {config.host} are not changed over HTTP; run `puna pull` there, or "
            "let the operator set allow_pull",
            kind="permission_error",
        )
    if service.library is None:
        raise ApiError(403, "this server has no model store to change", kind="permission_error")
    return service.library


class _Pull:
    """One pull in a thread of its own; a reader that goes away ends it, and it can be continued."""

    def __init__(self, library: Library, model: str, on_end: Any) -> None:
        self._library, self._model, self._on_end = library, model, on_end
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Update] = asyncio.Queue()
        self._is_unwanted = Event()
        self._told_at = 0.0
        Thread(target=self._run, name="puna-pull", daemon=True).start()

    def cancel(self) -> None:
        self._is_unwanted.set()

    async def updates(self) -> AsyncIterator[Update]:
        try:
            while True:
                update = await self._queue.get()
                yield update
                if update is None or isinstance(update, PunaError):
                    return
        finally:
            self.cancel()

    async def lines(self) -> AsyncIterator[bytes]:
        yield wire.line({"status": "pulling manifest"})
        async for update in self.updates():
            if isinstance(update, PunaError):
                yield wire.line(wire.error_body(from_puna(update, "model")))
            else:
                yield wire.line({"status": "success"} if update is None else update)

    def _run(self) -> None:
        end: PunaError | None = None
        try:
            self._library.pull(self._model, self._progress)
        except PunaError as error:
            end = error
        finally:
            self._tell(end)

    def _progress(self, what: str, done: int, total: int | None) -> None:
        if self._is_unwanted.is_set():
            raise Cancelled("the client went away")
        if monotonic() - self._told_at >= _TICK_S or done == total:
            self._told_at = monotonic()
            total_field = {} if total is None else {"total": total}
            self._tell({"status": what, "completed": done, **total_field})

    def _tell(self, update: Update) -> None:
        def put() -> None:
            if update is None or isinstance(update, PunaError):
                self._on_end()
            self._queue.put_nowait(update)

        with suppress(RuntimeError):  # the loop is closed: the server has gone
            self._loop.call_soon_threadsafe(put)
