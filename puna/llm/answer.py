"""Answers as they come: the text of a stream of results, and how long the engine took."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from puna.core import Completion, Request, StepResult
from puna.engine.engine import completion
from puna.text.stream import TextStream

if TYPE_CHECKING:
    from puna.engine.bridge import AsyncStream, Stream
    from puna.llm.model import LLM


class TimedText(TextStream):
    """A text stream that notes when the engine hands it tokens, whenever these are read."""

    first_at: float | None = None  # seconds of perf_counter
    last_at: float | None = None

    def push(self, token_id: int) -> str:
        self.last_at = perf_counter()
        if self.first_at is None:
            self.first_at = self.last_at
        return super().push(token_id)


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

    def __init__(self, owner: LLM, request: Request) -> None:
        self.request = request
        self._owner = owner  # an LLM that nobody refers to closes its engine
        assert isinstance(request.sink, TimedText)
        self._sink = request.sink
        self._results: list[StepResult] = []
        self._began_at = perf_counter()

    @property
    def timing(self) -> Timing:
        """Of what was read so far."""
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
        super().__init__(owner, stream.request)
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
    """The same for the event loop in which it was made. A cancelled task cancels its request."""

    def __init__(self, owner: LLM, stream: AsyncStream) -> None:
        super().__init__(owner, stream.request)
        self._stream = stream

    async def __anext__(self) -> str:
        while True:
            result = await anext(self._stream)
            self._results.append(result)
            if result.text:
                return result.text

    async def result(self) -> Completion:
        """Wait for the end; the text that was read already is in it as well."""
        async for _ in self:
            pass
        return completion(self.request, self._results)

    def close(self) -> None:
        """Cancel the request unless it has ended."""
        self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
