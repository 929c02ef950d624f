"""Every feature of the family on every executor, in float32, against transformers with the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity.features import FEATURES
from parity.oracle import oracle
from parity.runs import EXECUTORS, N_GREEDY, compare, embed

LOGPROB = 1e-4  # absolute, natural


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", FEATURES)
def test_equals_transformers(name: str, executor: str) -> None:
    known = oracle(name)
    run = compare(known, executor)
    assert run.max_error <= LOGPROB
    prompt = len(known.tokens)
    best = known.logprobs([*known.tokens, *run.greedy[:-1]])[prompt - 1 :].argmax(axis=1)
    assert run.greedy == best.tolist()
    assert len(run.greedy) == N_GREEDY


@pytest.mark.parametrize("name", [name for name, feature in FEATURES.items() if feature.without])
def test_the_comparison_notices_what_is_left_out(name: str) -> None:
    known = oracle(name)
    without = replace(known.config, **known.feature.without)
    assert compare(known, "torch", config=without).max_error > 100 * LOGPROB


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", ["gqa", "tied", "experts"])
def test_rows_before_the_output_matrix_equal_transformers(name: str, executor: str) -> None:
    known = oracle(name)
    expected = known.hidden(known.tokens)
    error = np.abs(embed(known, executor, 512) - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() <= 1e-4
    if executor == "native":
        np.testing.assert_array_equal(embed(known, executor, 512), embed(known, executor, 37))


@pytest.mark.parametrize("name", ["gqa", "rope_llama3_8", "experts", "chunk_8192"])
def test_other_chunks_give_the_same_bits(name: str) -> None:
    known = oracle(name)
    a, b = compare(known, "native", 512), compare(known, "native", 61)
    np.testing.assert_array_equal(a.logprobs, b.logprobs)
    assert a.greedy == b.greedy
