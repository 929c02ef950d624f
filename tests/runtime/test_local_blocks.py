"""Layers with chunked attention over blocks of their own: the bits of one pool, whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from puna.core import Batch, Chunk, Executor, Request, SamplingParams
from puna.engine.completion import completion
from puna.engine.config import EngineConfig
from puna.engine.engine import Engine
from puna.model.config import ExpertsConfig, ModelConfig, QueryTemperature
from puna.model.rope import rope_table
from puna.model.sizes import local_positions
from puna.runtime.native import BLOCK_TOKENS, NativeExecutor
from puna.runtime.reference import ReferenceExecutor
from puna.weights.blocks.quant import dequantize
from puna.weights.synthetic import synthetic_tensors

WINDOW = 256
CONFIG = ModelConfig(
    dim=64, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=96, vocab_size=160, norm_eps=1e-5,
    rope_theta=5e5, context_length=4096, tied=False, attention_chunk=WINDOW, no_rope_every=4, qk_norm=True,
    query_temperature=QueryTemperature(128, 0.1), experts=ExpertsConfig(4, 1, 96, 96, every=2),
)  # fmt: skip
TENSORS = synthetic_tensors(CONFIG, "f32")
STEP = 96  # tokens of a step
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 900).tolist()
# around ends of chunks, and of blocks
LENGTHS = (1, 31, 255, 256, 257, 300, 511, 512, 513, 545, 700)


def executor(n_blocks: int, *, pools: int = 2, cache_type: str = "bf16") -> NativeExecutor:
    """One pool where a step may be so long that two save nothing."""
    ex = NativeExecutor(
        CONFIG, TENSORS, rope_table(CONFIG), cache_tokens=n_blocks * BLOCK_TOKENS, cache_type=cache_type,
        max_tokens=STEP if pools == 2 else 4096, max_logits=1024, threads=2,
    )  # fmt: skip
    assert (ex.local_window, ex.n_local_blocks > 0) == ((WINDOW, True) if pools == 2 else (0, False))
    return ex


def answers(
    ex: Executor, prompts: Sequence[Sequence[int]], *, together: bool = False, guesses: int = 0
) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Tokens and log-probabilities of prompts and greedy answers, one after the other or at once."""
    engine = Engine(ex, EngineConfig(max_step_tokens=STEP, max_guesses=guesses))
    params = SamplingParams(temperature=0, max_tokens=40, logprobs=0)
    requests = [Request(prompt, params) for prompt in prompts]
    results: dict[int, list] = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
        while engine.is_busy and not together:
            for result in engine.step():
                results[result.request_id].append(result)
    while engine.is_busy:
        for result in engine.step():
            results[result.request_id].append(result)
    blocks = engine._scheduler.blocks
    assert (blocks.n_free, blocks.n_free_local) == (ex.n_blocks, ex.n_local_blocks)
    found = [completion(request, results[request.id]) for request in requests]
    engine.close()
    return [(done.token_ids, np.array([item.logprob for item in done.logprobs or ()])) for done in found]


def expect_equal(found: list[tuple[tuple[int, ...], np.ndarray]], expected: list) -> None:
    for (tokens, logprobs), (other_tokens, other_logprobs) in zip(found, expected, strict=True):
        assert tokens == other_tokens
        np.testing.assert_array_equal(logprobs, other_logprobs)


@pytest.fixture(scope="module")
def known() -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Each alone, in one pool, nothing cached."""
    return [answers(executor(40, pools=1), [TOKENS[:n]])[0] for n in LENGTHS]


@pytest.mark.parametrize("cache_type", ["bf16", "q8_0"])
def test_any_cut_gives_the_bits_of_one_pool(cache_type: str) -> None:
    one, two = executor(40, pools=1, cache_type=cache_type), executor(400, cache_type=cache_type)
    expected = one.step(Batch([Chunk(TOKENS, 0, range(40), len(TOKENS))])).copy()
    blocks, local = range(100, 140), list(range(7, 7 + (WINDOW + STEP) // BLOCK_TOKENS))
    for sizes in ([STEP], [1, 31, 64], [STEP - 1, 3]):
        start = i = origin = 0
        while start < len(TOKENS):
            n = min(sizes[i % len(sizes)], len(TOKENS) - start)
            if start - origin >= WINDOW:  # the blocks of the chunk left behind are used again
                origin += WINDOW
                local = local[WINDOW // BLOCK_TOKENS :] + local[: WINDOW // BLOCK_TOKENS]
            chunk = Chunk(TOKENS[start : start + n], start, blocks, n, (), local, origin)
            got = two.step(Batch([chunk]))
            np.testing.assert_array_equal(got, expected[start : start + n])
            start, i = start + n, i + 1


def test_the_oracle_agrees() -> None:
    floats = {name: dequantize(t.data(), t.kind, t.shape) for name, t in TENSORS.items()}
    oracle = ReferenceExecutor(CONFIG, floats, n_blocks=40, block_size=BLOCK_TOKENS)
    expected = oracle.step(Batch([Chunk(TOKENS[:600], 0, range(40), 600)]))[-1]
    ex = executor(400, cache_type="f32")
    (tokens, logprobs), *_ = answers(ex, [TOKENS[:600]])
    x = expected.astype(np.float64)
    best = x - x.max() - np.log(np.exp(x - x.max()).sum())
    assert tokens[0] == int(expected.argmax())
    assert abs(logprobs[0] - best.max()) < 1e-4


def test_prefixes_of_any_length_are_found_again(known: list) -> None:
    """One after the other: each finds what the ones before have cached, up to ends of chunks at least."""
    ex = executor(400)
    expect_equal(answers(ex, [TOKENS[:n] for n in LENGTHS]), known)
    expect_equal(answers(executor(400), [TOKENS[:n] for n in reversed(LENGTHS)]), known[::-1])


@pytest.mark.parametrize("n_blocks", [60, 90])
@pytest.mark.parametrize("guesses", [0, 8])
def test_many_at_once_in_pools_that_are_too_small(n_blocks: int, guesses: int, known: list) -> None:
    """They are preempted, and answer the same. Guesses cross ends of chunks and are taken back."""
    ex = executor(n_blocks)
    assert ex.n_local_blocks < ex.n_blocks
    expect_equal(answers(ex, [TOKENS[:n] for n in LENGTHS], together=True, guesses=guesses), known)


def test_cache_memory_is_that_of_two_pools() -> None:
    ex = executor(4000)
    assert ex.n_local_blocks == local_positions(WINDOW, 4000 * BLOCK_TOKENS, STEP) // BLOCK_TOKENS == 1000
    assert local_positions(8192, 1_000_000, 512) == 250_000
    assert local_positions(8192, 32_768, 512) == 2 * (8192 + 512)
    assert local_positions(8192, 10_000, 512) == local_positions(0, 10_000, 512) == 10_000


def test_chunks_that_cut_spans_share_the_pool() -> None:
    config = replace(CONFIG, attention_chunk=192)
    ex = NativeExecutor(config, TENSORS, rope_table(config), cache_tokens=4096, max_tokens=STEP)
    assert (ex.local_window, ex.n_local_blocks) == (0, 0)
