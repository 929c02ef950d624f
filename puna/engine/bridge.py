"""The engine thread, and the only asynchronous code below the server.

One thread owns the engine. Callers in other threads and in event loops submit requests and read streams of
results; they never touch the engine itself. Every accepted request gets an answer: a last result with a finish
reason, or EngineClosed if the engine broke. An interrupt in the caller's thread cannot leave the engine
half way through a step.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from puna.core import Completion, EngineClosed, Request, StepResult
from puna.engine.engine import Engine, completion

Item = StepResult | EngineClosed
S = TypeVar("S", bound="_Stream")


class _Stream:
    """What both kinds of stream share: they end after the result with a finish reason."""

    def __init__(self, owner: EngineThread, request: Request) -> None:
        self.request = request
        self._owner = owner
        self._has_ended = False

    def close(self) -> None:
        """Cancel the request unless it has ended. Results that are there already can still be read."""
        if not self._has_ended:
            self._owner.cancel(self.request.id)

    def __del__(self) -> None:
        self.close()  # nobody reads this any more

    def _unpack(self, item: Item) -> StepResult:
        if isinstance(item, EngineClosed):
            self._has_ended = True
            raise item
        self._has_ended = item.finish_reason is not None
        return item


class Stream(_Stream, Iterator[StepResult]):
    """The results of one request, for a caller in any thread; iterating waits for the next one."""

    def __init__(self, owner: EngineThread, request: Request) -> None:
        super().__init__(owner, request)
        self.items: SimpleQueue[Item] = SimpleQueue()

    def __next__(self) -> StepResult:
        if self._has_ended:
            raise StopIteration
        return self._unpack(self.items.get())

    def result(self) -> Completion:
        """Wait for the rest and return the whole answer; for a stream of which nothing was read."""
        return completion(self.request, self)


class AsyncStream(_Stream, AsyncIterator[StepResult]):
    """The results of one request, for a task of the event loop in which it was made.

    A task that is cancelled while it waits cancels the request.
    """

    def __init__(self, owner: EngineThread, request: Request) -> None:
        super().__init__(owner, request)
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[Item] = asyncio.Queue()

    async def __anext__(self) -> StepResult:
        if self._has_ended:
            raise StopAsyncIteration
        try:
            item = await self.items.get()
        except asyncio.CancelledError:
            self.close()
            raise
        return self._unpack(item)

    async def result(self) -> Completion:
        """Wait for the rest and return the whole answer; for a stream of which nothing was read."""
        return completion(self.request, [item async for item in self])


class EngineThread:
    """Runs `engine` in a thread of its own until close(). All methods are safe from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()  # run by the engine thread
        self._lock = threading.Lock()  # around whether commands are still accepted
        self._refusal: str | None = None
        self._is_draining = False
        self._streams: dict[int, Stream | AsyncStream] = {}
        ...
