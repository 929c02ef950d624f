"""Answers as they come: the text of a stream of results, and how long the engine took."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from puna.core import Completion, PromptTooLong, Request, StepResult
from puna.engine.completion import completion
from puna.text.stream import TextStream

if TYPE_CHECKING:
    from asyncio import Task

    from puna.engine.bridge import AsyncStream, Stream
    from puna.llm.model import LLM
    from puna.text.tokenizer import Tokenizer

_Begun = TypeVar("_Begun")


def begun(start: Callable[[Request], _Begun], request: Request) -> _Begun:
    """What `start` makes of a request; a prompt that is too long is told how much of it is images."""
    try:
        return start(request)
    except PromptTooLong as error:
        if not request.images:
            raise
        from puna.llm.images import explained  # which those without pictures do not need

        raise explained(error, request) from None


class TimedText(TextStream):
    """A text stream that notes when the engine hands it tokens, whenever these are read."""

    first_at: float | None = None  # seconds of perf_counter
    last_at: float | None = None

    def push(self, token_id: int) -> str:
        self.last_at = perf_counter()
        if self.first_at is None:
            self.first_at = self.last_at
        return super().push(token_id)


def text_sink(
    tokenizer: Tokenizer, stop: Sequence[str], *, continuing: bool, has_tools: bool = False
) -> TimedText:
    """Where the text of an answer comes from. Control tokens are left out, but where tools may be called,
    those that calls stand behind or between belong to what is read.
    """
    shown = frozenset[int]()
    if has_tools:
        from puna.text.call_grammar import tag_ids  # which most answers do not need

        shown = tag_ids(tokenizer)
    return TimedText(tokenizer, stop, skip_special=True, shown=shown, continuing=continuing)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the engine took. Rates are 0 where there was nothing to measure."""

    n_computed: int  # prompt tokens that were not in the cache
    n_tokens: int  # of the answer
    prompt_s: float  # from the request to the first token of the answer
    decode_s: float  # from the first token to the last

    @property
    def prompt_tok_s(self) -> float:
        return self.n_computed / self.prompt_s if self.prompt_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Of the tokens after the first."""
        return (self.n_tokens - 1) / self.decode_s if self.decode_s else 0.0


class _Reader:
    """What both kinds of answer share: the results so far."""

    request: Request

    def __init__(self, owner: LLM) -> None:
        self._owner = owner  # an LLM that nobody refers to closes its engine
        self._results: list[StepResult] = []
        self._sink: TimedText | None = None

    def _begin(self, request: Request) -> None:
        self.request = request
        assert isinstance(request.sink, TimedText)
        self._sink = request.sink
        self._began_at = perf_counter()

    @property
    def timing(self) -> Timing:
        """Of what was read so far."""
        if self._sink is None:
            return Timing(0, 0, 0.0, 0.0)
        n_cached = self._results[-1].n_cached if self._results else 0
        n_tokens = sum(len(result.token_ids) for result in self._results)
        first, last = self._sink.first_at, self._sink.last_at
        if first is None or last is None:
            return Timing(len(self.request.prompt) - n_cached, n_tokens, 0.0, 0.0)
        n_computed = len(self.request.prompt) - n_cached
        return Timing(n_computed, n_tokens, first - self._began_at, last - first)


class Answer(_Reader, Iterator[str]):
    """The text of one answer, piece by piece: iterating waits for the next piece, never empty.

    Whoever stops reading cancels the request: by leaving the `for` loop (when the answer is forgotten), by
    close(), or by leaving a `with` block. `result()` gives the whole answer, or what there is of a cancelled
    one.
    """

    def __init__(self, owner: LLM, stream: Stream) -> None:
        super().__init__(owner)
        self._begin(stream.request)
        self._stream = stream

    def __next__(self) -> str:
        while True:
            result = next(self._stream)
            self._results.append(result)
            if result.text:
                return result.text

    def result(self) -> Completion:
        """Wait for the end; the text that was read already is in it as well."""
        for _ in self:
            pass
        return completion(self.request, self._results)

    def close(self) -> None:
        """Cancel the request unless it has ended."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncAnswer(_Reader, AsyncIterator[str]):
    """The same for the event loop in which it was made. A cancelled task cancels its request.

    Pictures are prepared in another thread: what is wrong with them is raised where the answer is read, and
    `request` is there once the first piece is.
    """

    def __init__(self, owner: LLM, stream: AsyncStream | Task[AsyncStream]) -> None:
        super().__init__(owner)
        self._stream: AsyncStream | None = None
        self._starting: Task[AsyncStream] | None = None
        if isinstance(stream, AsyncIterator):
            self._read_from(stream)
        else:
            self._starting = stream

    async def __anext__(self) -> str:
        stream = self._stream or await self._started()
        while True:
            result = await anext(stream)
            self._results.append(result)
            if result.text:
                return result.text

    async def result(self) -> Completion:
        """Wait for the end; the text that was read already is in it as well."""
        async for _ in self:
            pass
        if self._stream is None:
            return Completion("", (), "cancelled", None, n_prompt=0, n_cached=0)
        return completion(self.request, self._results)

    def close(self) -> None:
        """Cancel the request unless it has ended."""
        if self._stream is not None:
            self._stream.close()
        elif self._starting is not None and not self._starting.cancel() and _has_result(self._starting):
            self._read_from(self._starting.result()).close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _started(self) -> AsyncStream:
        """The stream, once there is one. Raises what is wrong with the request, or that it was cancelled."""
        from asyncio import CancelledError, wait

        assert self._starting is not None
        try:
            await wait([self._starting])
        except CancelledError:
            self.close()
            raise
        if self._starting.cancelled():
            raise StopAsyncIteration
        return self._read_from(self._starting.result())

    def _read_from(self, stream: AsyncStream) -> AsyncStream:
        if self._stream is None:
            self._begin(stream.request)
            self._stream = stream
        return self._stream


def _has_result(task: Task[AsyncStream]) -> bool:
    return not task.cancelled() and task.exception() is None
