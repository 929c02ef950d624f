from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from puna.core import (
    BadFile,
    BadValue,
    Batch,
    Completion,
    EngineClosed,
    PromptTooLong,
    Request,
    SamplingParams,
    WorkFailed,
)
from puna.engine.bridge import AsyncStream, EngineThread
from puna.engine.config import EngineConfig
from puna.engine.engine import Engine
from puna.engine.mock import MockExecutor

PARAMS = SamplingParams(temperature=0, max_tokens=30)
WAIT = 10  # seconds until a test that hangs fails


class Gate(MockExecutor):
    """Runs steps while the gate is open; shuts it, or breaks, when told to."""

    def __init__(self) -> None:
        super().__init__(n_blocks=400)
        self.opened = threading.Event()
        self.opened.set()
        self.n_steps = 0
        self.shuts_after: int | None = None
        self.breaks_at: int | None = None

    def step(self, batch: Batch) -> NDArray[np.float32]:
        if self.n_steps == self.shuts_after:
            self.opened.clear()
        assert self.opened.wait(WAIT)
        self.n_steps += 1
        if self.n_steps == self.breaks_at:
            raise MemoryError("no more")
        return super().step(batch)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def thread(gate: Gate) -> Iterator[EngineThread]:
    with EngineThread(Engine(gate, EngineConfig(max_guesses=0))) as thread:
        yield thread
        gate.opened.set()


def test_an_error_of_one_request_is_raised_where_it_is_read(
    thread: EngineThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Gate.step
    monkeypatch.setattr(Gate, "step", lambda gate, batch: run(gate, batch) * np.nan)
    with pytest.raises(BadFile, match="not a number"):
        thread.stream(Request([1], PARAMS)).result()

    async def ask() -> None:
        with pytest.raises(BadFile, match="not a number"):
            await thread.astream(Request([1], PARAMS)).result()

    asyncio.run(ask())
    monkeypatch.setattr(Gate, "step", run)
    assert thread.stream(Request([2], PARAMS)).result().finish_reason == "length"


def test_streams_in_any_thread(thread: EngineThread) -> None:
    alone = [thread.stream(Request([i, 3, i], PARAMS)).result() for i in range(12)]
    answers: list[Completion | None] = [None] * 12

    def ask(i: int) -> None:
        answers[i] = thread.stream(Request([i, 3, i], PARAMS)).result()

    askers = [threading.Thread(target=ask, args=[i]) for i in range(12)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(WAIT)
    assert [answer and answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]


def test_streams_token_by_token(thread: EngineThread) -> None:
    stream = thread.stream(Request([1], PARAMS))
    results = list(stream)
    assert [len(result.token_ids) for result in results] == [1] * 30
    assert [result.finish_reason for result in results] == [None] * 29 + ["length"]
    assert list(stream) == []


def test_many_tasks_of_one_loop(thread: EngineThread) -> None:
    async def main() -> list[Completion]:
        return await asyncio.gather(*[thread.astream(Request([i, 3, i], PARAMS)).result() for i in range(12)])

    alone = [thread.stream(Request([i, 3, i], PARAMS)).result() for i in range(12)]
    assert [done.token_ids for done in asyncio.run(main())] == [done.token_ids for done in alone]


def test_bad_requests_fail_in_the_caller(thread: EngineThread, gate: Gate) -> None:
    with pytest.raises(PromptTooLong, match="300 tokens"):
        thread.stream(Request([1] * 300, PARAMS))
    gate.opened.clear()
    stream = thread.stream(Request([1], PARAMS, id=-7))
    with pytest.raises(BadValue, match="-7 is still running"):
        thread.stream(Request([1], PARAMS, id=-7))
    gate.opened.set()
    assert stream.result().finish_reason == "length"


def test_a_closed_stream_cancels(thread: EngineThread, gate: Gate) -> None:
    gate.shuts_after = 2
    stream = thread.stream(Request([1], PARAMS))
    next(stream)
    while gate.opened.is_set():
        time.sleep(0.001)
    stream.close()
    gate.opened.set()
    assert [result.finish_reason for result in stream][-1] == "cancelled"
    stream.close()


def test_a_forgotten_stream_cancels(thread: EngineThread, gate: Gate) -> None:
    gate.opened.clear()
    stream = thread.stream(Request([1], SamplingParams(max_tokens=10_000)))
    del stream
    gc.collect()
    other = thread.stream(Request([2], PARAMS))
    gate.opened.set()
    other.result()
    assert not thread._inboxes
    assert gate.n_steps < 40  # of 10,000


def test_a_cancelled_task_cancels(thread: EngineThread, gate: Gate) -> None:
    gate.shuts_after = 2

    async def main() -> list[str | None]:
        stream = thread.astream(Request([1], PARAMS))
        task = asyncio.create_task(stream.result())
        while gate.opened.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.opened.set()
        return [result.finish_reason async for result in stream]

    assert asyncio.run(asyncio.wait_for(main(), WAIT))[-1] == "cancelled"


def test_a_loop_that_is_gone_stops_nobody_else(thread: EngineThread, gate: Gate) -> None:
    async def main() -> AsyncStream:
        return thread.astream(Request([1], PARAMS))

    gate.opened.clear()
    stream = asyncio.run(main())
    other = thread.stream(Request([2], PARAMS))
    gate.opened.set()
    assert len(other.result().token_ids) == 30
    assert not thread._inboxes
    stream.close()


@pytest.mark.parametrize("drain", [False, True])
def test_closing_answers_everybody(gate: Gate, drain: bool) -> None:
    thread = EngineThread(Engine(gate, EngineConfig(max_running=2)))
    gate.opened.clear()
    streams = [thread.stream(Request([i], PARAMS)) for i in range(6)]
    closer = threading.Thread(target=thread.close, kwargs={"drain": drain})
    closer.start()
    while thread._refusal is None:
        pass
    with pytest.raises(EngineClosed, match="the engine is closed"):
        thread.stream(Request([1], PARAMS))
    gate.opened.set()
    closer.join(WAIT)
    reasons = [stream.result().finish_reason for stream in streams]
    assert reasons == ["length" if drain else "cancelled"] * 6
    assert gate.is_closed
    thread.close()


def test_a_second_close_ends_a_drain(gate: Gate) -> None:
    thread = EngineThread(Engine(gate, EngineConfig(max_guesses=0)))
    gate.opened.clear()
    stream = thread.stream(Request([1], PARAMS))
    closers = [threading.Thread(target=thread.close, kwargs={"drain": drain}) for drain in (True, False)]
    for closer in closers:
        closer.start()
    gate.opened.set()
    for closer in closers:
        closer.join(WAIT)
    assert stream.result().finish_reason in ("cancelled", "length")
    assert not any(closer.is_alive() for closer in closers)


def test_a_step_that_fails_ends_its_requests_only(gate: Gate) -> None:
    thread = EngineThread(Engine(gate))
    gate.opened.clear()
    gate.breaks_at = 3
    streams = [thread.stream(Request([i], PARAMS)) for i in range(4)]

    async def main() -> None:
        stream = thread.astream(Request([9], PARAMS))
        gate.opened.set()
        with pytest.raises(WorkFailed, match="failed \\(MemoryError: no more\\); ask again"):
            await stream.result()

    asyncio.run(asyncio.wait_for(main(), WAIT))
    for stream in streams:
        with pytest.raises(WorkFailed, match="MemoryError: no more") as caught:
            stream.result()
        assert isinstance(caught.value.__cause__, MemoryError)
    assert thread.stream(Request([1], PARAMS)).result().finish_reason == "length"
    thread.close()


def test_everybody_hears_that_the_engine_broke(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong outside of a step is a mistake of ours: nothing can be said of its requests."""
    engine = Engine(gate)
    thread = EngineThread(engine)
    gate.opened.clear()
    streams = [thread.stream(Request([i], PARAMS)) for i in range(4)]

    def fail() -> None:
        raise RuntimeError("lost count")

    monkeypatch.setattr(engine._scheduler, "schedule", fail)
    gate.opened.set()
    for stream in streams:
        with pytest.raises(EngineClosed, match="stopped on RuntimeError: lost count"):
            stream.result()
    with pytest.raises(EngineClosed, match="stopped on RuntimeError"):
        thread.stream(Request([1], PARAMS))
    thread.close()


def test_leaving_the_program_with_an_open_engine_is_quiet() -> None:
    program = """
from puna.core import Request, SamplingParams
from puna.engine.bridge import EngineThread
from puna.engine.engine import Engine
from puna.engine.mock import MockExecutor
thread = EngineThread(Engine(MockExecutor(context_length=2000, n_blocks=1000)))
print(next(thread.stream(Request([1], SamplingParams()))).finish_reason)
stream = thread.stream(Request([1], SamplingParams()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT)
    assert (done.stdout, done.stderr, done.returncode) == ("None\n", "", 0)
