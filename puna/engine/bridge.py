"""The engine thread, and the only asynchronous code below the server.

One thread owns the engine. Callers in other threads and in event loops submit requests and read streams
of results; they never touch the engine itself. Every accepted request gets an answer: a last result with
a finish reason, or EngineClosed if the engine broke. An interrupt in the caller's thread cannot leave the
engine half way through a step.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from puna.core import BadValue, Completion, EngineClosed, PunaError, Request, StepResult, WorkFailed
from puna.engine.engine import Engine, completion
from puna.engine.stats import EngineStats

if TYPE_CHECKING:
    import asyncio  # at run time only where an event loop asks: it takes as long to import as NumPy

Item = StepResult | PunaError


class _Inbox(NamedTuple):
    """Where the results of a request go. Refers to no stream, so that a forgotten stream can be collected."""

    put: Callable[[Item], None]
    loop: asyncio.AbstractEventLoop | None  # the loop whose thread must call `put`; None: any thread


class _Stream:
    """What both kinds of stream share: they end after the result that has a finish reason."""

    def __init__(self, owner: EngineThread, request: Request) -> None:
        self.request = request
        self._owner = owner
        self._has_ended = False

    def close(self) -> None:
        """Cancel the request unless it has ended. What it gave until then can still be read."""
        if not self._has_ended:
            self._owner.cancel(self.request.id)

    def __del__(self) -> None:
        self.close()  # nobody reads it any more

    def _open(self, item: Item) -> StepResult:
        if isinstance(item, PunaError):
            self._has_ended = True
            raise item
        self._has_ended = item.finish_reason is not None
        return item


class Stream(_Stream, Iterator[StepResult]):
    """The results of one request, for a caller in any thread: iterating waits for the next one."""

    def __init__(self, owner: EngineThread, request: Request, items: SimpleQueue[Item]) -> None:
        super().__init__(owner, request)
        self._items = items

    def __next__(self) -> StepResult:
        if self._has_ended:
            raise StopIteration
        return self._open(self._items.get())

    def result(self) -> Completion:
        """Wait for the end and return the whole answer; for a stream from which nothing was read."""
        return completion(self.request, self)


class AsyncStream(_Stream, AsyncIterator[StepResult]):
    """The results of one request, for the event loop in which it was made.

    A task that is cancelled while it waits cancels the request.
    """

    def __init__(self, owner: EngineThread, request: Request, items: asyncio.Queue[Item]) -> None:
        super().__init__(owner, request)
        self._items = items

    async def __anext__(self) -> StepResult:
        from asyncio import CancelledError

        if self._has_ended:
            raise StopAsyncIteration
        try:
            item = await self._items.get()
        except CancelledError:
            self.close()
            raise
        return self._open(item)

    async def result(self) -> Completion:
        """Wait for the end and return the whole answer; for a stream from which nothing was read."""
        return completion(self.request, [item async for item in self])


class EngineThread:
    """Runs an engine in a thread of its own, until close(). Every method is safe from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine  # the engine thread's; others may only call check()
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()  # run between two steps
        self._inboxes: dict[int, _Inbox] = {}  # by request id; added to under the lock
        self._lock = threading.Lock()
        self._refusal: str | None = None  # why no more requests are taken
        self._is_draining = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="puna-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a step must not be running while the interpreter is torn down

    def __enter__(self) -> EngineThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stream(self, request: Request) -> Stream:
        """Submit a request. Raises what is wrong with it: PromptTooLong, BadValue, or EngineClosed."""
        items: SimpleQueue[Item] = SimpleQueue()
        self._submit(request, _Inbox(items.put, None))
        return Stream(self, request, items)

    def astream(self, request: Request) -> AsyncStream:
        """The same from inside a running event loop."""
        import asyncio

        items: asyncio.Queue[Item] = asyncio.Queue()
        self._submit(request, _Inbox(items.put_nowait, asyncio.get_running_loop()))
        return AsyncStream(self, request, items)

    def cancel(self, request_id: int) -> None:
        """End a request after the current step; its last result says so. Unknown ids are ignored."""
        # takes no lock: the garbage collector may call this at any moment, and the queue allows that
        self._commands.put(partial(self._engine.cancel, request_id))

    def stats(self) -> EngineStats:
        """Figures of the engine. Takes no lock, and no step waits for it."""
        found = self._engine.stats()
        return replace(found, waiting=max(found.waiting, len(self._inboxes) - found.running))

    @property
    def is_open(self) -> bool:
        """False once it takes no more requests: it was closed, or it broke."""
        return self._refusal is None

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests, cancel those there are (or, to drain, finish them), and close the engine."""
        with self._lock:
            self._refusal = self._refusal or "the engine is closed; load the model again to go on"
        self._commands.put(partial(self._wind_up, drain))
        self._thread.join()
        atexit.unregister(self.close)

    def _submit(self, request: Request, inbox: _Inbox) -> None:
        self._engine.check(request)
        with self._lock:
            if self._refusal is not None:
                raise EngineClosed(self._refusal)
            if request.id in self._inboxes:
                raise BadValue(f"request ids must be unique, but {request.id} is still running")
            self._inboxes[request.id] = inbox
            self._commands.put(partial(self._start, request))

    # what follows runs in the engine thread

    def _run(self) -> None:
        try:
            while not self._is_stopping and not (self._is_draining and not self._engine.is_busy):
                self._obey()
                self._deliver(self._engine.step())
            self._deliver(self._engine.close())
        except BaseException as error:  # whatever it is, those who wait must hear of it
            self._fail(error)

    def _obey(self) -> None:
        """Run the commands given since the last step; with nothing else to do, wait for one."""
        if not self._engine.is_busy:
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()

    def _start(self, request: Request) -> None:
        """What only now turns out to be wrong with a request is its own affair."""
        try:
            self._engine.submit(request)
        except Exception as error:
            inbox = self._inboxes.pop(request.id)
            failed = WorkFailed(f"the request could not be started ({type(error).__name__}: {error})")
            failed.__cause__ = error
            if inbox.loop is None:
                inbox.put(failed)
            elif not inbox.loop.is_closed():
                inbox.loop.call_soon_threadsafe(inbox.put, failed)

    def _wind_up(self, drain: bool) -> None:
        self._is_draining = True
        self._is_stopping = not drain

    def _deliver(self, results: list[StepResult]) -> None:
        """Hand out results; those for an event loop in one call, as waking a loop costs a system call."""
        batches: dict[asyncio.AbstractEventLoop, list[tuple[Callable[[Item], None], StepResult]]] = {}
        for result in results:
            inbox = self._inboxes[result.request_id]
            if result.finish_reason is not None or result.error is not None:
                del self._inboxes[result.request_id]
            if inbox.loop is None:
                inbox.put(result.error or result)
            else:
                batches.setdefault(inbox.loop, []).append((inbox.put, result))
        for loop, batch in batches.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:  # the loop was closed under its streams: nobody waits any more
                for _, result in batch:
                    self._engine.cancel(result.request_id)

    def _fail(self, error: BaseException) -> None:
        """The engine is broken: tell everybody who waits or comes later."""
        message = f"the engine stopped on {type(error).__name__}: {error}; load the model again to go on"
        with self._lock:
            self._refusal = message
        for inbox in self._inboxes.values():
            closed = EngineClosed(message)
            closed.__cause__ = error
            if inbox.loop is None:
                inbox.put(closed)
            elif not inbox.loop.is_closed():
                inbox.loop.call_soon_threadsafe(inbox.put, closed)
        self._inboxes.clear()


def _put_all(batch: list[tuple[Callable[[Item], None], StepResult]]) -> None:
    for put, result in batch:
        put(result.error or result)
