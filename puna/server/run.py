"""Running the application: uvicorn, with a drain that finishes what was begun."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.applications import Starlette

from puna.server.config import ServerConfig
from puna.server.connection import Connection
from puna.server.listen import bind, cannot_listen
from puna.server.logs import event

SWITCH_S = 0.0005  # the engine's thread and the event loop take turns more often than Python's 5 ms


class Drained(Protocol):
    """What is served: calls.Service, or the front of several; an application's `state.service`."""

    is_draining: bool  # set with the first signal

    @property
    def config(self) -> ServerConfig: ...

    @property
    def n_in_flight(self) -> int: ...

    def cut_off(self) -> None: ...  # all that is in flight


def _without_query(record: logging.LogRecord) -> bool:
    """Who puts a key where it does not belong, into a URL, shall not find it in the log as well."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, *rest = record.args
        record.args = (client, method, str(path).partition("?")[0], *rest)
    return True


def serve(
    app: Starlette,
    config: ServerConfig,
    ready: Callable[[str], None],
    bound: socket.socket | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. `ready` gets the URL once it answers.

    `bound` is the socket to listen on, which is closed in the end; without it one is made.

    The first signal drains: new requests are told to go elsewhere, those in flight have `grace` seconds to
    end. A second one stops at once. Raises BadInput where the address cannot be listened on.
    """
    sys.setswitchinterval(SWITCH_S)
    logging.getLogger("uvicorn.access").addFilter(_without_query)
    listener = bind(config) if bound is None else bound
    server = _Server(
        uvicorn.Config(
            app,
            http=Connection,
            loop="uvloop",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=config.log_level == "debug",  # with a line for each call there are two of each
            server_header=False,
            backlog=2048,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
            ssl_certfile=config.tls_cert or None,
            ssl_keyfile=config.tls_key or None,
        ),
        app.state.service,
    )
    scheme = "https" if config.tls_cert else "http"
    host, port = listener.getsockname()[:2]
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    server.when_ready = lambda: ready(url)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
    return 0


class _Server(uvicorn.Server):
    """uvicorn, draining before it shuts down."""

    when_ready: Callable[[], None]

    def __init__(self, config: uvicorn.Config, service: Drained) -> None:
        super().__init__(config)
        self._service = service
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            for bound in sockets or ():
                bound.listen(self.config.backlog)  # uvloop, which does it again, would not say that it failed
        except OSError as error:  # another server, which was starting as well, listens there by now
            raise cannot_listen(self._service.config, error) from None
        await super().startup(sockets)
        if self.started:
            self.when_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.is_draining:
            self.force_exit = sig == signal.SIGINT
            self.should_exit = True
            self._service.cut_off()
            return
        self._service.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._service.is_draining and self._drain is None:
            self._drain = asyncio.create_task(self._finish())
        return bool(await super().on_tick(counter))

    async def _finish(self) -> None:
        """Wait until nothing is in flight, or the time is up."""
        event("drain", in_flight=self._service.n_in_flight, grace_s=self._service.config.grace)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._service.config.grace
        while self._service.n_in_flight and loop.time() < until:
            await asyncio.sleep(0.02)
        self._service.cut_off()
        while self._service.n_in_flight and loop.time() < until + 2:
            await asyncio.sleep(0.02)
        event("stop", in_flight=self._service.n_in_flight)
        self.should_exit = True
