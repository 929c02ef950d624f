"""10,000 random traces: arrivals, cancellations, tiny block pools, shared beginnings, every chunk size, with
and without blocks of their own for local layers, of one tenant or of several with priorities, with adapters
that are unloaded now and then.

Whatever happens around it, every request gets the answer that it gets alone; no block is lost or used
twice, and of one tenant the oldest request moves on in every step.
"""

from __future__ import annotations

from functools import cache
from random import Random

import numpy as np
import pytest
from engine import slow_engine
from numpy.typing import NDArray

from puna.core import Batch, Request, SamplingParams, StepResult, TokenLogprob, UnknownModel
from puna.engine.completion import completion
from puna.engine.config import EngineConfig
from puna.engine.draft import DraftModel
from puna.engine.engine import Engine
from puna.engine.mock import MockExecutor

VOCAB, END = 8, 6
PARAMS = [
    SamplingParams(temperature=0, max_tokens=9),
    SamplingParams(temperature=0, max_tokens=30, logprobs=2),
    SamplingParams(temperature=0, frequency_penalty=1.5, repetition_penalty=1.3, max_tokens=12, min_tokens=6),
    SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=12),
    SamplingParams(temperature=0.3, seed=6, stop_ids=(3,)),
    SamplingParams(temperature=1.0, top_k=3, presence_penalty=1.0, seed=7, max_tokens=3, ignore_end=True),
]
PROMPTS = [
    [7, 2, 5, 4, 1, 1, 5, 0, 0, 3, 6, 2, 7, 1, 4, 6, 2],
    [7, 2, 5, 4, 1, 6, 6, 6, 6, 2, 0, 4, 0],
    [1, 2, 3] * 5,
]
EMBEDDING = SamplingParams()
CONTEXT = 24


class Model(MockExecutor):
    """Also checks each batch against the limits, and that the oldest request is in it where all are equal."""

    def __init__(self, rng: Random, is_mixed: bool) -> None:
        block_size = rng.randint(1, 4)
        n_blocks = -(-rng.choice([18, 18, 28, 60]) // block_size)
        self.max_tokens = rng.choice([1, 3, 5, 8, 12, 12, 20, 50])
        window = block_size * rng.choice([0, 0, 1, 2, 3])
        n_local_blocks = (
            -(-(window + self.max_tokens) // block_size) + rng.choice([0, 0, 2, 8]) if window else 0
        )
        super().__init__(VOCAB, CONTEXT, n_blocks, block_size, n_local_blocks, window)
        self.max_rows = rng.choice([1, 3, 8, 12, 20])
        self.is_mixed = is_mixed
        self.engine: Engine | None = None
        self.seen: list[int] = []  # chunks of the step

    def _run(self, batch: Batch, n_columns: int) -> NDArray[np.float32]:
        assert self.engine
        assert sum(len(chunk.tokens) for chunk in batch.chunks) <= self.max_tokens
        assert sum(chunk.n_logits for chunk in batch.chunks) <= self.max_rows
        self.seen += [id(chunk) for chunk in batch.chunks]
        return super()._run(batch, n_columns)


@cache
def expected(
    prompt: tuple[int, ...], end_ids: frozenset[int], i_params: int, window: int, adapter: int
) -> slow_engine.Answer:
    """The answer in the largest context; in a smaller one it only ends sooner."""
    request = Request(prompt, PARAMS[i_params], end_ids, prompt_logprobs=True, adapter=adapter)
    return slow_engine.answer(MockExecutor(VOCAB, local_window=window), request, CONTEXT)


def check_books(engine: Engine) -> None:
    """Every block is held as often as running sequences list it, or is free exactly once."""
    manager = engine._scheduler.blocks
    for pool, table in ((manager._pool, "blocks"), (manager._local, "local_blocks")):
        held = [0] * pool.n_blocks
        for seq in engine._scheduler.running:
            for block in getattr(seq, table):
                held[block] += 1
        assert held == pool._n_holders
        assert sorted([*pool._blank, *pool._idle]) == [b for b, n in enumerate(held) if not n]
        assert not any(getattr(seq, table) for seq in engine._scheduler.queue.in_order())


def draw_draft(rng: Random, config: EngineConfig) -> DraftModel | None:
    """Now and then a draft model, whose cache may be tiny; it is always right where there is no window."""
    if rng.random() < 0.7:
        return None
    n_blocks, block_size = rng.choice([3, 10, 40]), rng.randint(1, 4)
    draft = MockExecutor(VOCAB, rng.choice([10, CONTEXT]), n_blocks, block_size)
    return DraftModel(draft, config.max_step_tokens)


def draw_request(rng: Random) -> tuple[Request, int]:
    prompt = rng.choice(PROMPTS)[: rng.choice([1, 2, 4, 5, 8, 9, 12, 16])]
    if rng.random() < 0.3:
        prompt = [*prompt, rng.randrange(3)]
    i_params = rng.randrange(len(PARAMS))
    adapter = rng.choice([0, 0, 1, 2])
    if rng.random() < 0.2:
        return Request(prompt, EMBEDDING, adapter=adapter, pooling=rng.choice(["last", "mean"])), 0
    end_ids = frozenset({END}) if rng.random() < 0.5 else frozenset()
    is_scored = rng.random() < 0.3
    return Request(prompt, PARAMS[i_params], end_ids, prompt_logprobs=is_scored, adapter=adapter), i_params


def compare(request: Request, i_params: int, results: list[StepResult], engine: Engine) -> None:
    window = engine._scheduler.blocks.window
    if request.pooling is not None:
        return compare_embedding(request, results[-1], window)
    answer = expected(tuple(request.prompt), request.end_ids, i_params, window, request.adapter)
    room = max(1, engine.capacity - len(request.prompt))
    done = completion(request, results)
    assert list(done.token_ids) == answer.tokens[: len(done.token_ids)]
    if done.finish_reason == "cancelled":
        return
    if len(answer.tokens) >= room:
        assert (len(done.token_ids), done.finish_reason) == (room, "length")
    else:
        assert len(done.token_ids) == len(answer.tokens)
        assert (done.finish_reason, done.stop) == (answer.finish_reason, answer.stop)
    compare_logprobs(done.logprobs, answer.logprobs[: len(done.token_ids)])
    compare_logprobs(done.prompt_logprobs, answer.prompt_logprobs)


def compare_embedding(request: Request, last: StepResult, window: int) -> None:
    if last.finish_reason == "cancelled":
        assert last.embedding is None
        return
    rows_RD = rows(tuple(request.prompt), window, request.adapter)
    expected_D = rows_RD[-1] if request.pooling == "last" else rows_RD.mean(axis=0, dtype=np.float64)
    assert (last.finish_reason, last.token_ids) == ("stop", [])
    assert last.embedding is not None
    np.testing.assert_allclose(last.embedding, expected_D, rtol=1e-6)


@cache
def rows(prompt: tuple[int, ...], window: int, adapter: int) -> NDArray[np.float32]:
    model = MockExecutor(VOCAB, local_window=window)
    all_rows = [model.logits(prompt[:n], adapter=adapter) for n in range(1, len(prompt) + 1)]
    return np.stack([row_V[: model.embedding_dim] for row_V in all_rows])


def compare_logprobs(found: tuple[TokenLogprob, ...] | None, expected: list[float]) -> None:
    if found is not None:
        assert len(found) == len(expected)
        assert all(abs(item.logprob - value) < 1e-9 for item, value in zip(found, expected, strict=True))


def run_trace(seed: int) -> None:
    rng = Random(seed)
    model = Model(rng, is_mixed := rng.random() < 0.4)
    config = EngineConfig(
        model.max_tokens,
        rng.randint(1, 6),
        model.max_rows * 4 * VOCAB,
        rng.choice([0, 2, 8]),
        rng.choice([1, 5, 50]),
    )
    model.engine = engine = Engine(model, config, draw_draft(rng, config))
    for adapter in (1, 2):
        engine.adapters.load(adapter, None)
    to_come = [draw_request(rng) for _ in range(rng.randint(1, 6))]
    kinds: dict[int, tuple[Request, int]] = {}
    results: dict[int, list[StepResult]] = {}
    p_unload = rng.choice([0.0, 0.3])
    p_arrival, p_cancel = rng.choice([0.2, 0.7, 1.0]), rng.choice([0.0, 0.0, 0.05])
    while to_come or engine.is_busy:
        while to_come and rng.random() < p_arrival:
            request, i_params = to_come.pop()
            if is_mixed:
                request.tenant, request.priority = rng.choice("abc"), rng.choice([0, 0, 0, 1, -1])
            if request.adapter == 2 and rng.random() < p_unload:  # who has it keeps it
                engine.adapters.unload(2)
                with pytest.raises(UnknownModel):
                    engine.submit(request)
                to_come = [other for other in to_come if other[0].adapter != 2]
                continue
            engine.submit(request)
            kinds[request.id] = request, i_params
            results[request.id] = []
        if kinds and rng.random() < p_cancel:
            engine.cancel(rng.choice(list(kinds)))
        oldest, model.seen = next(iter(engine._live.values()), None), []
        for result in engine.step():
            results[result.request_id].append(result)
        assert is_mixed or oldest is None or id(oldest.chunk) in model.seen
        check_books(engine)
    assert set(engine.adapters._n_users.values()) == {0}
    assert model.adapters == set(engine.adapters._n_users)
    for request_id, (request, i_params) in kinds.items():
        compare(request, i_params, results[request_id], engine)
    assert engine._scheduler.blocks.n_free == model.n_blocks
    assert engine._scheduler.blocks.n_free_local == model.n_local_blocks


def test_ten_thousand_traces() -> None:
    for seed in range(10_000):
        try:
            run_trace(seed)
        except BaseException as error:
            error.add_note(f"in trace {seed}")
            raise
