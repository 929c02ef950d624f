"""An HTTP server that answers what a test says, and an event loop whose time passes at once."""

from __future__ import annotations

import asyncio
import json
import selectors
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

# (path, body, headers in lower case, where to write)
Script = Callable[[str, dict[str, Any], dict[str, str], asyncio.StreamWriter], Awaitable[None]]
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


def usage(n_prompt: int, n_output: int, n_cached: int | None = None) -> bytes:
    told: dict[str, Any] = {"prompt_tokens": n_prompt, "completion_tokens": n_output}
    if n_cached is not None:
        told["prompt_tokens_details"] = {"cached_tokens": n_cached}
    return event({"choices": [], "usage": told})


def plain(status: int, value: object) -> bytes:
    body = json.dumps(value).encode()
    head = (
        f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answer(n: int, n_prompt: int = 7, n_cached: int | None = None) -> bytes:
    """A whole good answer of `n` tokens."""
    events = [delta("", None), *(delta("word ") for _ in range(n)), delta("", "stop")]
    return (
        STREAM
        + b"".join(chunk(e) for e in [*events, usage(n_prompt, n, n_cached), event(b"[DONE]")])
        + chunk(b"")
    )


class Server:
    """Runs a script on a free port of this machine in a thread of its own; counts what came."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.n_connections = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode().strip().split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
                data = await reader.readexactly(int(headers.get("content-length", "0")))
                path = first.split()[1]
                body = json.loads(data) if data else {}
                if path.endswith("completions"):
                    self.bodies.append(body)
                    self.keys.append(headers.get("authorization"))
                await self._script(path, body, headers, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@contextmanager
def running(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, Server]]:
    """The server's URL and what it counts."""
    server, loop = Server(script), asyncio.new_event_loop()
    started = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def stop() -> None:
        started.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # sockets are closed in the turns of the loop that follow

    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{started.sockets[0].getsockname()[1]}", server
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class _Skipping(selectors.DefaultSelector):
    """Moves the loop's clock on instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time is a number that sleeping adds to, so that timings are exact and tests are fast."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._skipping.now


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
