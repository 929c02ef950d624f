"""A replica: the whole server in a process of the cluster, called by the front in place of a socket."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any

from fastapi import FastAPI
from ray import serve

from puna.core import EngineClosed
from puna.server.cluster.wire import Envelope, Part, unpacked
from puna.server.errors import Dialects
from puna.server.run import SWITCH_S
from puna.server.service import Service

Message = MutableMapping[str, Any]
Serving = Callable[[], AbstractContextManager[FastAPI]]


class Replica:
    """`serving` loads the models and makes the application; leaving it frees them."""

    async def __init__(self, serving: Serving) -> None:  # type: ignore[misc]  # Serve awaits it
        sys.setswitchinterval(SWITCH_S)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._answering: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()
        self._app = self._stack.enter_context(serving())
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))

    async def __del__(self) -> None:
        """Serve calls this when the replica is to stop, once its requests have ended."""
        if self._answering:
            await asyncio.wait(self._answering)
        await self._stack.aclose()

    @property
    def _service(self) -> Service:
        service: Service = self._app.state.service
        return service

    def check_health(self) -> None:
        """Raise EngineClosed where a model cannot answer any more: Serve replaces the replica then."""
        for name, model in self._service.models.loaded().items():
            if not model.is_open:
                raise EngineClosed(f"the engine of {name} has stopped")

    def dialects(self) -> Dialects:
        """How each API words its errors, for those that the front has to make."""
        return self._service.dialects

    async def answer(self, envelope: Envelope) -> AsyncIterator[Part]:
        """The answer as it is made. Whoever stops reading it has it cancelled, and accounted for."""
        answering = _Answering(self._app, envelope, self._id)
        task = asyncio.create_task(answering.run())
        self._answering.add(task)  # it ends by itself, however this generator does
        task.add_done_callback(self._answering.discard)
        try:
            async for part in answering.parts():
                yield part
            await task
        finally:
            answering.is_gone.set()


class _Answering:
    """One request between the application and the front."""

    def __init__(self, app: FastAPI, envelope: Envelope, replica: str) -> None:
        self._app = app
        self._envelope = envelope
        self._replica = replica
        self._ready: asyncio.Queue[Part | None] = asyncio.Queue()
        self._is_read = False
        self.is_gone = asyncio.Event()  # the client, or the whole answer was sent

    async def run(self) -> None:
        try:
            await self._app(unpacked(self._envelope), self._receive, self._send)
        finally:
            self._ready.put_nowait(None)

    async def parts(self) -> AsyncIterator[Part]:
        """What was made since the last look is one part: a message of Ray costs more than a token."""
        while (part := await self._ready.get()) is not None:
            more: list[bytes] = []
            is_last = False
            while not self._ready.empty():
                following = self._ready.get_nowait()
                if following is None:
                    is_last = True
                    break
                more.append(following.body)
            yield (
                Part(b"".join([part.body, *more]), part.status, part.headers, part.replica) if more else part
            )
            if is_last:
                return

    async def _receive(self) -> Message:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self._envelope.body, "more_body": False}
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._ready.put_nowait(Part(b"", message["status"], tuple(message["headers"]), self._replica))
        elif message.get("body"):
            self._ready.put_nowait(Part(message["body"]))
