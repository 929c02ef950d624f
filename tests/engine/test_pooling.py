"""Embeddings in the engine, and log-probabilities of tokens by their ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from puna.core import BadFile, BadValue, Batch, Request, SamplingParams, StepResult
from puna.engine.completion import completion
from puna.engine.engine import Engine
from puna.engine.mock import MockExecutor
from puna.engine.pooling import Pool, normalized


def run(engine: Engine, *requests: Request) -> dict[int, list[StepResult]]:
    found: dict[int, list[StepResult]] = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.is_busy:
        for result in engine.step():
            found[result.request_id].append(result)
    return found


def test_log_probabilities_of_named_tokens_are_those_of_the_whole_row() -> None:
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=1, logprob_ids=(5, 9, 5))
    request = Request([1, 2, 3], params)
    answer = completion(request, run(Engine(MockExecutor()), request)[request.id])
    assert answer.logprobs is not None
    for i, item in enumerate(answer.logprobs):
        row = MockExecutor().logits([1, 2, 3, *answer.token_ids[:i]]).astype(float)
        known = row - np.log(np.exp(row).sum())
        (first, _), *named = item.top
        assert first == item.token_id
        assert named == [(j, pytest.approx(known[j], abs=1e-6)) for j in (5, 9, 5)]
    with pytest.raises(BadValue, match="logprob_ids must be token ids from 0 to 63, got 64 to 64"):
        Engine(MockExecutor()).check(Request([1], replace(params, logprob_ids=(64,))))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_that_are_no_numbers_end_one_request_and_no_other(pooling: Any) -> None:
    class Broken(MockExecutor):
        def embed(self, batch: Batch) -> Any:
            rows = super().embed(batch)
            rows[[chunk.tokens[0] == 9 for chunk in batch.chunks for _ in range(chunk.n_logits)]] = np.nan
            return rows

    broken, good = (Request([first, 2], SamplingParams(), pooling=pooling) for first in (9, 1))
    answer = Request([1, 2], SamplingParams(temperature=0, max_tokens=2))
    found = run(Engine(Broken()), broken, good, answer)
    assert isinstance(found[broken.id][-1].error, BadFile)
    assert found[good.id][-1].embedding is not None
    assert found[answer.id][-1].finish_reason == "length"


def test_a_failed_step_of_embeddings_leaves_answers_alone() -> None:
    class Failing(MockExecutor):
        def embed(self, batch: Batch) -> Any:
            raise RuntimeError("a fuse blew")

    lost = Request([1, 2], SamplingParams(), pooling="last")
    answer = Request([1, 2], SamplingParams(temperature=0, max_tokens=2))
    found = run(Engine(Failing()), lost, answer)
    assert "a fuse blew" in str(found[lost.id][-1].error)
    assert found[answer.id][-1].finish_reason == "length"


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pools_have_the_same_bits_however_rows_come(pooling: Any) -> None:
    rng = np.random.default_rng(0)
    rows_RD = rng.standard_normal((200, 7)).astype(np.float32) * 1e4
    found = set()
    for _ in range(30):
        cuts = sorted(rng.integers(0, 200, 5))
        pool = Pool(pooling, 7)
        for part_RD in np.split(rows_RD, cuts):
            pool.add(part_RD)
        found.add(pool.result().tobytes())
    assert len(found) == 1
    expected_D = rows_RD[-1] if pooling == "last" else rows_RD.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.frombuffer(found.pop(), np.float32), expected_D, rtol=1e-6)


def test_normalizing() -> None:
    np.testing.assert_array_equal(
        normalized(np.array([3, 0, 4], np.float32)), np.array([0.6, 0, 0.8], np.float32)
    )
    np.testing.assert_array_equal(normalized(np.zeros(3, np.float32)), np.zeros(3, np.float32))
    large = normalized(np.full(4, 3e38, np.float32))  # whose squares are no float32
    np.testing.assert_allclose(large, 0.5)
