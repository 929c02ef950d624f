"""The same tokens through two checkpoints of one model: how far apart their predictions are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch, Chunk
from puna.model.rope import rope_table
from puna.weights.load import open_checkpoint

N_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Comparison:
    n_tokens: int
    mean_difference: float  # absolute, of natural log-probabilities, over tokens and vocabulary weighted by probability
    max_difference: float  # the largest, of tokens that either gives a probability of 1 in 1,000
    agreement: float  # share of positions with the same most likely next token


def compare_logits(source: Path, result: Path, threads: int) -> Comparison:
    """Run a fixed pseudo-random sequence of N_TOKENS ids through both, with a cache in float32."""
    a, b = (_logprobs(path, threads) for path in (source, result))
    difference = np.abs(a - b)
    p = np.exp(a)
    likely = np.maximum(p, np.exp(b)) >= 1e-3
    return Comparison(
        n_tokens=len(a),
        mean_difference=float((p * difference).sum(axis=1).mean()),
        max_difference=float(difference[likely].max()),
        agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
    )


def _logprobs(path: Path, threads: int) -> NDArray[np.float64]:
    from puna.runtime.native import NativeExecutor

    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        n = min(N_TOKENS, config.context_length)
        executor = NativeExecutor(
            config, checkpoint.tensors, rope_table(config), cache_tokens=n, cache_type="f32", threads=threads,
            max_tokens=n, max_logits=n,
        )  # fmt: skip
    try:
        ids = (np.random.Philox(key=0).random_raw(n) % np.uint64(config.vocab_size)).astype(int).tolist()
        logits = executor.step(Batch([Chunk(ids, 0, list(range(executor.n_blocks)), n)])).astype(np.float64)
    finally:
        executor.close()
    x = logits - logits.max(axis=1, keepdims=True)
    log_p: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return log_p
