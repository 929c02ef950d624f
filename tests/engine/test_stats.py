"""Figures against what an executor has really seen."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from puna.core import Batch, Request, SamplingParams
from puna.engine.bridge import EngineThread
from puna.engine.config import EngineConfig
from puna.engine.engine import Engine
from puna.engine.masks import GrammarStats
from puna.engine.mock import MockExecutor

GREEDY = SamplingParams(temperature=0, max_tokens=8)


class Watched(MockExecutor):
    """Counts tokens and chunks by itself; fails in the step `fails_at`."""

    n_steps = n_tokens = n_chunks = 0
    fails_at = -1

    def step(self, batch: Batch) -> NDArray[np.float32]:
        self.n_steps += 1
        if self.n_steps == self.fails_at:
            raise MemoryError("no room")
        self.n_tokens += sum(len(chunk.tokens) for chunk in batch.chunks)
        self.n_chunks += len(batch.chunks)
        return super().step(batch)


def run(engine: Engine, *requests: Request) -> None:
    for request in requests:
        engine.submit(request)
    while engine.is_busy:
        engine.step()


def test_sums_are_those_of_the_executor() -> None:
    model = Watched(block_size=4, n_blocks=40)
    engine = Engine(model, EngineConfig(max_guesses=0))
    run(engine, Request([1] * 9, GREEDY), Request([2] * 5, GREEDY))
    run(engine, Request([1] * 9, GREEDY))
    stats = engine.stats()
    assert (stats.steps, stats.step_tokens, stats.step_sequences) == (
        model.n_steps,
        model.n_tokens,
        model.n_chunks,
    )
    assert stats.generated_tokens == 3 * 8
    assert (stats.prefix_queries, stats.prefix_hits) == (9 + 5 + 9, 8)
    assert stats.prefill_tokens == 9 + 5 + 1
    assert stats.step_tokens == stats.prefill_tokens + 3 * 7  # the last token of an answer is never computed
    assert (stats.running, stats.waiting, stats.kv_blocks_used, stats.kv_blocks) == (0, 0, 0, 40)
    assert stats.kv_blocks_cached == 4 + 3  # 16 and 12 whole positions
    assert stats.step_seconds > 0


def test_what_runs_and_what_waits() -> None:
    engine = Engine(Watched(block_size=4, n_blocks=40), EngineConfig(max_running=1))
    for tenant in ("a", "a", "b"):
        engine.submit(Request([1] * 5, GREEDY, tenant=tenant))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.waiting_tenants) == (1, 2, 2)
    assert (stats.last_step_sequences, stats.last_step_tokens, stats.kv_blocks_used) == (1, 5, 2)


def test_guesses_preemptions_and_failures_are_counted() -> None:
    model = Watched(block_size=2, n_blocks=8, context_length=16)
    engine = Engine(model)
    run(engine, Request([1, 2, 3, 4], GREEDY), Request([1, 2, 3, 5], GREEDY))
    stats = engine.stats()
    assert stats.preemptions > 0
    assert stats.prefill_tokens > 4 + 4  # some was computed twice
    counting = Engine(Watched())
    run(counting, Request(list(range(1, 30)) * 2, SamplingParams(temperature=0, max_tokens=20)))
    stats = counting.stats()
    assert stats.proposed_tokens > stats.accepted_tokens > 0
    assert stats.steps == 20 - stats.accepted_tokens
    model = Watched()
    model.fails_at = 1
    engine = Engine(model)
    run(engine, Request([1], GREEDY))
    assert (engine.stats().failed_steps, engine.stats().steps) == (1, 1)


def test_a_thread_may_ask_at_any_time() -> None:
    done = threading.Event()
    failures: list[BaseException] = []
    with EngineThread(Engine(Watched())) as thread:

        def ask() -> None:
            last = 0
            while not done.is_set():
                stats = thread.stats()
                if stats.generated_tokens < last or stats.running + stats.waiting > 30:
                    failures.append(AssertionError(str(stats)))
                last = stats.generated_tokens

        asking = threading.Thread(target=ask)
        asking.start()
        streams = [thread.stream(Request([i, 2, 3], GREEDY, tenant=str(i % 3))) for i in range(30)]
        answers = [stream.result() for stream in streams]
        done.set()
        asking.join()
        stats = thread.stats()
    assert not failures
    assert stats.generated_tokens == sum(len(answer.token_ids) for answer in answers)
    assert stats.waiting == pytest.approx(0)


def test_costs_of_masks_are_within_a_factor_of_one_and_a_half() -> None:
    stats = GrammarStats()
    assert stats.quantile(0.5) == 0
    for _ in range(98):
        stats.count(3, 3 * 20e-6)
    stats.count(6, 6 * 2e-3)
    assert 20e-6 <= stats.quantile(0.5) <= 30e-6
    assert stats.quantile(0.99) == pytest.approx(2e-3)
    assert stats.quantile(0.97) <= 30e-6
