"""Blocks out of one engine and into another, over the mock executor: every token must be as if computed."""

from __future__ import annotations

import threading
from array import array
from random import Random

import pytest

from puna.core import EngineClosed, Request, SamplingParams, Unsupported
from puna.engine.bridge import EngineThread
from puna.engine.completion import completion
from puna.engine.config import EngineConfig
from puna.engine.engine import Engine
from puna.engine.mock import MockExecutor

GREEDY = SamplingParams(temperature=0, max_tokens=6, logprobs=0)


def run(engine: Engine, prompt: list[int]) -> tuple[tuple[int, ...], int, object]:
    request = Request(prompt, GREEDY)
    engine.submit(request)
    results = []
    while engine.is_busy:
        results += engine.step()
    done = completion(request, results)
    return done.token_ids, done.n_cached, done.logprobs


def make(window: int = 0, n_blocks: int = 30) -> tuple[MockExecutor, Engine]:
    model = MockExecutor(16, 120, n_blocks, 4, n_local_blocks=20 if window else 0, local_window=window)
    return model, Engine(model, EngineConfig(max_step_tokens=16))


def moved(source: Engine, target: Engine, tokens: list[int], piece: int) -> int:
    """Carry the cached beginning of `tokens` over; returns its blocks."""
    one, two, ids = source.transfer, target.transfer, array("i", tokens)
    held = one.hold_prefix(ids)
    n, n_local = len(held.blocks), len(held.local_blocks)
    free = two.hold_free(n)
    assert free is not None
    assert len(free.local_blocks) == n_local
    for local, count in ((False, n), (True, n_local)):
        for first in range(0, count, piece):
            data = one.read(held, first, min(count, first + piece), local=local)
            two.write(free, first, data, local=local)
    two.offer(ids[: 4 * n], free)
    two.let_go(free)
    one.let_go(held)
    return n


@pytest.mark.parametrize("window", [0, 4, 12, 16])
def test_what_was_moved_is_what_would_be_computed(window: int) -> None:
    rng = Random(window)
    for _ in range(40):
        (_, source), (_, target), (_, fresh) = make(window), make(window), make(window)
        prompt = [rng.randrange(16) for _ in range(rng.randint(5, 70))]
        other = [*prompt[: rng.randint(1, len(prompt))], 3, 1, 2]
        run(source, prompt)
        if rng.random() < 0.5:
            run(target, other)
        n = moved(source, target, prompt, rng.randint(1, 5))
        assert n >= (len(prompt) // 4 if not window else len(prompt) // window * window // 4)
        for asked in (prompt, other):
            answer, n_cached, logprobs = run(target, asked)
            assert (answer, logprobs) == run(fresh, asked)[::2]
            shared = next((i for i, (a, b) in enumerate(zip(asked, prompt, strict=False)) if a != b), 99)
            if not window:
                assert n_cached >= min(shared, 4 * n, len(asked) - 1) // 4 * 4
        for engine in (source, target):
            blocks = engine._scheduler.blocks
            assert (blocks.n_free, blocks.n_free_local) == (30, 20 if window else 0)


def test_no_room_changes_nothing() -> None:
    _, engine = make(n_blocks=12)
    engine.submit(Request([1] * 30, GREEDY))
    engine.step()
    assert engine.transfer.hold_free(5) is None
    held = engine.transfer.hold_free(4)
    assert held is not None
    engine.transfer.let_go(held)
    assert engine._scheduler.blocks.n_free == 4


def test_a_sequence_waits_for_blocks_that_a_transfer_holds() -> None:
    _, engine = make(n_blocks=10)
    prompt = [1, 2, 3, 4, 5]
    held = engine.transfer.hold_free(9)
    assert held is not None
    request = Request(prompt, GREEDY)
    engine.submit(request)
    for _ in range(3):
        assert engine.step() == []
    assert engine.is_busy
    engine.transfer.let_go(held)
    results = []
    while engine.is_busy:
        results += engine.step()
    assert completion(request, results).token_ids == run(make()[1], prompt)[0]


def test_an_executor_without_blocks_to_move_is_named() -> None:
    class Fixed:
        """A mock executor less what moves blocks."""

        def __init__(self) -> None:
            self._model = MockExecutor()

        def __getattr__(self, name: str) -> object:
            if name in ("cache_format", "read_blocks", "write_blocks"):
                raise AttributeError(name)
            return getattr(self._model, name)

    engine = Engine(Fixed())  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="backend native"):
        engine.transfer.read(engine.transfer.hold_prefix(array("i", [1, 2])), 0, 0)


def test_work_between_steps_of_a_thread() -> None:
    thread = EngineThread(Engine(MockExecutor()))
    assert thread.run(lambda engine: engine.transfer.block_tokens) == 4
    with pytest.raises(ZeroDivisionError):
        thread.run(lambda engine: 1 // 0)
    stream = thread.stream(Request([1, 2, 3], GREEDY))
    assert threading.current_thread() is not thread.run(lambda engine: threading.current_thread())
    assert len(stream.result().token_ids) == 6
    thread.close()
    with pytest.raises(EngineClosed):
        thread.run(lambda engine: None)
