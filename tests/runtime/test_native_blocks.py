"""Blocks of the native cache as bytes: out of one executor, into another, with and without local layers."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from runtime.test_local_blocks import STEP, TOKENS, executor

from puna.core import Completion, Request, SamplingParams
from puna.engine.completion import completion
from puna.engine.config import EngineConfig
from puna.engine.engine import Engine
from puna.runtime.native import BLOCK_TOKENS, NativeExecutor

PARAMS = SamplingParams(temperature=0, max_tokens=8, logprobs=0)


def run(engine: Engine, prompt: list[int]) -> Completion:
    request = Request(prompt, PARAMS)
    engine.submit(request)
    results = []
    while engine.is_busy:
        results += engine.step()
    return completion(request, results)


def make(pools: int, cache_type: str) -> tuple[NativeExecutor, Engine]:
    ex = executor(40 if pools == 1 else 400, pools=pools, cache_type=cache_type)
    return ex, Engine(ex, EngineConfig(max_step_tokens=STEP))


@pytest.mark.parametrize(
    ("n", "pools", "cache_type"),
    [(300, 1, "bf16"), (300, 1, "q8_0"), (40, 2, "bf16"), (300, 2, "bf16"), (513, 2, "q8_0")],
)
def test_moved_blocks_are_computed_ones(pools: int, cache_type: str, n: int) -> None:
    (one, source), (two, target) = make(pools, cache_type), make(pools, cache_type)
    expected = run(source, TOKENS[:n])
    ids = array("i", TOKENS[:n])
    held = source.transfer.hold_prefix(ids)
    free = target.transfer.hold_free(len(held.blocks))
    assert free is not None
    for local, table, each in (
        (False, held.blocks, one.block_bytes),
        (True, held.local_blocks, one.local_block_bytes),
    ):
        if table:
            data = source.transfer.read(held, 0, len(table), local=local)
            assert data.shape == (len(table), each)
            target.transfer.write(free, 0, data, local=local)
    target.transfer.offer(ids[: len(held.blocks) * BLOCK_TOKENS], free)
    target.transfer.let_go(free)
    source.transfer.let_go(held)
    found = run(target, TOKENS[:n])
    assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)
    assert found.n_cached >= n // BLOCK_TOKENS * BLOCK_TOKENS - (BLOCK_TOKENS if pools == 2 else 0)
    assert one.cache_format == two.cache_format
    assert expected.n_cached == 0


def test_contracts() -> None:
    ex = executor(400)
    each = ex.block_bytes
    assert each + ex.local_block_bytes == executor(40, pools=1).block_bytes
    zeros = np.zeros((2, each), np.uint8)
    ones = zeros + np.uint8(1)
    ex.write_blocks([3, 5], ones, local=False)
    assert (ex.read_blocks([5, 4, 3], local=False) == np.array([[1], [0], [1]], np.uint8)).all()
    assert ex.read_blocks([], local=False).shape == (0, each)
    for blocks, data, words in [
        ([3, 400], zeros, "no such cache block"),
        ([-1, 3], zeros, "no such cache block"),
        ([3], zeros, "1 blocks of"),
        ([3, 4], zeros[:, 1:], "2 blocks of"),
    ]:
        with pytest.raises(ValueError, match=words):
            ex.write_blocks(blocks, data, local=False)
    with pytest.raises(ValueError, match="no such cache block"):
        ex.read_blocks([ex.n_local_blocks], local=True)
    with pytest.raises(ValueError, match="no layer has blocks of its own"):
        executor(40, pools=1).read_blocks([0], local=True)
