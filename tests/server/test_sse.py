"""Streams to clients that do not read, or go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest

from puna.server.sse import Stream


class Wire:
    """A client that takes `n` messages and then reads nothing for `seconds`."""

    def __init__(self, n: int, seconds: float) -> None:
        self.bodies: list[bytes] = []
        self._n, self._seconds = n, seconds

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if len(self.bodies) == self._n:
            await asyncio.sleep(self._seconds)
        self.bodies.append(message.get("body", b"start"))

    async def receive(self) -> MutableMapping[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}


def streamed(wire: Wire, stall_s: float) -> tuple[int, bool]:
    """How many parts were made, and whether the answer was told to end."""
    made = 0
    ended = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal made
        for i in range(8):
            if ended.is_set() and i > 5:
                return  # within a step
            made += 1
            yield b"%d" % i
            await asyncio.sleep(0.001)

    async def run() -> None:
        stream = Stream(chunks(), ended.set, stall_s=stall_s)
        await asyncio.wait_for(stream({"type": "http"}, wire.receive, wire.send), 30)

    asyncio.run(run())
    return made, ended.is_set()


@pytest.mark.parametrize("n", [1, 3])
def test_who_leaves_an_answer_unread_is_cut_off_and_the_rest_is_counted(n: int) -> None:
    wire = Wire(n, seconds=20)
    made, has_ended = streamed(wire, stall_s=0.2)
    assert len(wire.bodies) == n
    assert has_ended
    assert made == 6


def test_who_reads_slowly_gets_all_of_it() -> None:
    wire = Wire(4, seconds=0.3)
    made, _ = streamed(wire, stall_s=2)
    assert wire.bodies == [b"start", *(b"%d" % i for i in range(8)), b""]
    assert made == 8
