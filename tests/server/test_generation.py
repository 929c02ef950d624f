"""Answers as pieces: text and calls in their order, wherever the text is cut; one call where that is all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from puna.core import Request, SamplingParams, StepResult
from puna.server.generation import Generation, Whole
from puna.text.tools import ToolCall

TOOLS = ("feed", "walk")
FEED, WALK = '{"name": "feed", "parameters": {"n": 1}}', '{"name": "walk", "parameters": {}}'


@dataclass
class Told:
    """A stream that was written down."""

    results: list[StepResult]
    request: Request = field(default_factory=lambda: Request([1], SamplingParams()))
    is_closed: bool = False

    async def __aiter__(self) -> AsyncIterator[StepResult]:
        for result in self.results:
            assert not self.is_closed
            yield result

    def close(self) -> None:
        self.is_closed = True


def told(pieces: list[str]) -> Told:
    results = [StepResult(0, [7], piece, 0, [], []) for piece in pieces]
    results.append(StepResult(0, [], "", 0, [], [], finish_reason="stop", stop=2))
    return Told(results)


def read(stream: Told, *, parallel: bool = True) -> tuple[Whole, Generation]:
    generation, found = Generation(stream, TOOLS, parallel=parallel), Whole()

    async def add() -> None:
        async for piece in generation.pieces():
            found.add(piece)

    asyncio.run(add())
    return found, generation


def shown(found: Whole) -> list[str]:
    return [part.name if isinstance(part, ToolCall) else f"text {part}" for part in found.blocks]


@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_text_and_calls_keep_their_order(cuts: list[int]) -> None:
    text = f"First {FEED}; {WALK} then{FEED} last."
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    found, generation = read(told(pieces))
    assert shown(found) == ["text First ", "feed", "walk", "text  then", "feed", "text  last."]
    assert found.text == "First  then last."
    assert [call.name for call in found.calls] == ["feed", "walk", "feed"]
    assert found.finish == "tool_calls"
    assert generation.n_output == len(pieces) + 1


@given(cut=st.integers(1, 60))
def test_an_answer_may_end_with_its_first_call(cut: int) -> None:
    text = f"First {FEED}; {WALK} then"
    stream = told([text[:cut], text[cut:], "more", "and more"])
    found, generation = read(stream, parallel=False)
    assert shown(found) == ["text First ", "feed"]
    assert (found.finish, generation.finish) == ("tool_calls", "tool_calls")
    assert stream.is_closed
    assert generation.n_output == (1 if cut >= len("First ") + len(FEED) else 2)


def test_without_a_call_it_ends_by_itself() -> None:
    found, _ = read(told(["Just ", "text."]), parallel=False)
    assert (shown(found), found.finish, found.stop) == (["text Just text."], "stop", 2)
