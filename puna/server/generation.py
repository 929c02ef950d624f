"""Answers as they come, in no API's words: pieces of text, whole tool calls, log-probabilities, an end.

Every API translates these; what counts tokens and times is here as well, so that it is the same for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from puna.core import PunaError, Request, StepResult, TokenLogprob
from puna.server.served import ResultStream
from puna.text.tools import ToolCall, ToolCallParser

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Finish = Literal["stop", "length", "tool_calls", "content_filter", "cancelled"]


@dataclass(slots=True)
class Piece:
    """What became known of one choice: text, and the calls that follow it. The last one of a choice has a
    finish.
    """

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None
    stop: str | int | None = None  # the stop string or id that ended it
    choice: int = 0


class Generation:
    """One answer. Iterating raises the error that broke it off; counts hold whatever happened."""

    def __init__(
        self,
        stream: ResultStream,
        tools: Iterable[str | Mapping[str, Any]] | None = None,
        *,
        keeps_text: bool = False,
        parallel: bool = True,
    ) -> None:
        """Without `parallel` it ends with its first call of a tool."""
        self.request: Request = stream.request
        self.stream = stream
        self.n_output = 0  # tokens, with the one that ended it
        self.token_ids: list[int] = []  # these tokens
        self.n_cached = 0
        self.prompt_logprobs: list[TokenLogprob] = []
        self.embedding: NDArray[np.float32] | None = None  # once it is there, where one was asked for
        self.began_at = perf_counter()
        self.admitted_at: float | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.finish: Finish | None = None
        self.kept: list[str] | None = [] if keeps_text else None  # what the model wrote, in pieces
        self.is_blocked = False
        self._parser = ToolCallParser(tools) if tools is not None else None
        self._parallel = parallel
        self._n_calls = 0

    def close(self) -> None:
        """Cancel it unless it has ended; what is left of it can still be read."""
        self.stream.close()

    def block(self) -> None:
        """What it says may not be shown: it ends, whatever is left of it."""
        self.close()
        self.is_blocked = True
        self.finish = "content_filter"

    async def pieces(self) -> AsyncIterator[Piece]:
        async for result in self.stream:
            for piece in self._take(result):
                yield piece
            if self.finish is not None and result.finish_reason is None:
                self.close()
                return

    def _take(self, result: StepResult) -> Sequence[Piece]:
        """Count a result, and say what is new in it, if anything is."""
        n_new = len(result.token_ids) + (isinstance(result.stop, int))
        self.token_ids += result.token_ids
        if isinstance(result.stop, int):
            self.token_ids.append(result.stop)
        self.n_cached = result.n_cached
        if self.kept is not None:
            self.kept.append(result.text)
        self.embedding = result.embedding
        if result.prompt_logprobs:
            self.prompt_logprobs += result.prompt_logprobs
        if result.admitted_at is not None:
            self.admitted_at = result.admitted_at
        if n_new:
            self.n_output += n_new
            self.last_at = perf_counter()
            if self.first_at is None:
                self.first_at = self.last_at
        if self.is_blocked:
            return ()
        finish = result.finish_reason
        if self._parser is None:
            if not (result.text or result.logprobs or finish):
                return ()
            self.finish = finish
            return (Piece(result.text, [], result.logprobs, finish, result.stop),)
        return self._parse(self._parser, result)

    def _parse(self, parser: ToolCallParser, result: StepResult) -> Sequence[Piece]:
        events = parser.push(result.text) if result.text else []
        if result.finish_reason is not None:
            events = [*events, *parser.flush()]
        pieces = [Piece(logprobs=result.logprobs)]
        finish: Finish | None = result.finish_reason
        for event in events:
            if isinstance(event, ToolCall):
                self._n_calls += 1
                pieces[-1].calls.append(event)
                if not self._parallel:
                    finish = "tool_calls"
                    break
            elif pieces[-1].calls:
                pieces.append(Piece(event))
            else:
                pieces[-1].text += event
        if finish == "stop" and self._n_calls:
            finish = "tool_calls"
        self.finish = pieces[-1].finish = finish
        pieces[-1].stop = result.stop
        return pieces if events or result.logprobs or finish else ()


async def merged(generations: Sequence[Generation]) -> AsyncGenerator[Piece, None]:
    """The pieces of several choices as they come, each with its number."""
    if len(generations) == 1:
        async for piece in generations[0].pieces():
            yield piece
        return
    ready: asyncio.Queue[Piece | PunaError | None] = asyncio.Queue()

    async def pump(number: int, generation: Generation) -> None:
        try:
            async for piece in generation.pieces():
                piece.choice = number
                ready.put_nowait(piece)
        except PunaError as error:
            ready.put_nowait(error)
        finally:
            ready.put_nowait(None)

    tasks = [asyncio.create_task(pump(*pair)) for pair in enumerate(generations)]
    try:
        n_open = len(tasks)
        while n_open:
            item = await ready.get()
            if item is None:
                n_open -= 1
            elif isinstance(item, PunaError):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


@dataclass(slots=True)
class Whole:
    """A whole choice."""

    parts: list[str | ToolCall] = field(default_factory=list)  # pieces of text, and calls, in their order
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish = "stop"
    stop: str | int | None = None

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def blocks(self) -> list[str | ToolCall]:
        """The parts with texts that follow one another as one."""
        found: list[str | ToolCall] = []
        for kind, group in groupby(self.parts, type):
            parts = list(group)
            found += ["".join(map(str, parts))] if kind is str else parts
        return found

    @property
    def calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]

    def add(self, piece: Piece) -> None:
        """Take the next piece of this choice."""
        if piece.text:
            self.parts.append(piece.text)
        self.parts += piece.calls
        self.logprobs += piece.logprobs
        if piece.finish is not None:
            self.finish, self.stop = piece.finish, piece.stop
