"""Layers with chunked attention over blocks of their own, in torch: what the oracle says, in any cut."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from runtime.test_local_blocks import CONFIG, LENGTHS, STEP, TENSORS, TOKENS, WINDOW, answers  # noqa: E402

from puna.core import Batch, Chunk  # noqa: E402
from puna.model.rope import rope_table  # noqa: E402
from puna.model.sizes import local_positions  # noqa: E402
from puna.runtime.reference import ReferenceExecutor  # noqa: E402
from puna.runtime.torch import BLOCK_TOKENS, TorchExecutor  # noqa: E402
from puna.weights.blocks.quant import dequantize  # noqa: E402

LOGPROB = 1e-4


def executor(n_blocks: int, *, pools: int = 2, static_decode: bool = False) -> TorchExecutor:
    """Whose cache is full of what must not be read."""
    ex = TorchExecutor(
        CONFIG, TENSORS, rope_table(CONFIG), cache_tokens=n_blocks * BLOCK_TOKENS, device="cpu",
        max_tokens=STEP if pools == 2 else 0, static_decode=static_decode, threads=1,
    )  # fmt: skip
    assert (ex.local_window, ex.n_local_blocks > 0) == ((WINDOW, True) if pools == 2 else (0, False))
    for part in (*ex._cache.keys, *ex._cache.values):
        part.fill_(float("nan"))
    return ex


def log_softmax(logits: Any) -> Any:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@cache
def expected() -> Any:
    """Log-probabilities after each of TOKENS, by the numpy oracle in one pass."""
    floats = {name: dequantize(t.data(), t.kind, t.shape) for name, t in TENSORS.items()}
    oracle = ReferenceExecutor(CONFIG, floats, n_blocks=40, block_size=BLOCK_TOKENS)
    return log_softmax(oracle.step(Batch([Chunk(TOKENS[:600], 0, range(40), 600)])))


@pytest.mark.parametrize("static_decode", [False, True])
def test_any_cut_says_what_the_oracle_says(static_decode: bool) -> None:
    """Chunks of a prompt, then single tokens over the end of a chunk; blocks left behind are used again."""
    ex = executor(400, static_decode=static_decode)
    blocks, local = list(range(100, 140)), list(range(7, 7 + -(-(WINDOW + STEP) // BLOCK_TOKENS)))
    start = origin = 0
    while start < 600:
        n = 1 if start >= 505 else min(STEP - 3, 505 - start)
        if start - origin >= WINDOW:
            origin += WINDOW
            local = local[WINDOW // BLOCK_TOKENS :] + local[: WINDOW // BLOCK_TOKENS]
        chunk = Chunk(TOKENS[start : start + n], start, blocks, n, (), local, origin)
        got = log_softmax(ex.step(Batch([chunk])))
        np.testing.assert_allclose(got, expected()[start : start + n], rtol=0, atol=LOGPROB)
        start += n
    assert (len(ex._decode._sizes) > 0) if static_decode else ex._decode is None  # type: ignore[union-attr]


@pytest.mark.parametrize("static_decode", [False, True])
def test_many_at_once_in_pools_that_are_too_small(static_decode: bool) -> None:
    """They are preempted, share prefixes, and say what each says alone in one pool."""
    prompts = [TOKENS[:n] for n in LENGTHS]
    alone = [answers(executor(40, pools=1), [prompt])[0] for prompt in prompts]
    together = answers(executor(60, static_decode=static_decode), prompts, together=True)
    for (tokens, logprobs), (other_tokens, other_logprobs) in zip(together, alone, strict=True):
        assert tokens == other_tokens
        np.testing.assert_allclose(logprobs, other_logprobs, rtol=0, atol=LOGPROB)


def test_memory_is_that_of_two_pools() -> None:
    ex = executor(4000)
    n_local = local_positions(WINDOW, 4000 * BLOCK_TOKENS, STEP)
    assert ex.n_local_blocks * BLOCK_TOKENS == n_local
    position = 2 * CONFIG.n_kv_heads * CONFIG.head_dim * 4
    total = sum(part.nbytes for part in (*ex._cache.keys, *ex._cache.values))
    padding = CONFIG.n_layers * BLOCK_TOKENS * position
    assert total - padding == position * (4000 * BLOCK_TOKENS + 3 * n_local)  # one layer of four is global
