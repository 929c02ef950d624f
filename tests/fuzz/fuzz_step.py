"""What a damaged file may do to the kernels: pack all of its weights, run a prefill and a decode step.

Knows nothing of files: fuzz_gguf.py calls `pack_and_step` for every checkpoint that opens. Weights are copied
first, so that a sanitizer sees where each of them ends.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from puna import _native
from puna.core import Batch, Chunk, Unsupported
from puna.model.rope import rope_table
from puna.runtime.native import BLOCK_TOKENS, CACHE_TYPES, NativeExecutor, pack_weight
from puna.weights.blocks.tensor import RawTensor
from puna.weights.load import Checkpoint

TARGETS = _native.available_targets()
LONGEST = 40  # tokens of a prefill: more than a cache block, and than the kernels for few tokens take


def pack_and_step(checkpoint: Checkpoint, rng: np.random.Generator) -> str:
    """Returns `ran`, `not finite` if some logit is no finite number, `opened` if no kernel has the shape.

    CPU target, cache type, threads, tokens and lengths are drawn from `rng`.
    """
    tensors = {name: _copied(tensor) for name, tensor in checkpoint.tensors.items()}
    for tensor in tensors.values():
        if len(tensor.shape) == 2:
            pack_weight(tensor.kind, tensor.shape, tensor.data())
    try:
        executor = NativeExecutor(
            checkpoint.config,
            tensors,
            rope_table(checkpoint.config),
            cache_tokens=4 * BLOCK_TOKENS,
            cache_type=str(rng.choice(CACHE_TYPES)),
            threads=int(rng.integers(1, 3)),
            max_tokens=LONGEST,
            max_logits=LONGEST,
            target=str(rng.choice(TARGETS)),
        )
    except Unsupported:
        return "opened"
    finite = all(np.isfinite(executor.step(batch)).all() for batch in _batches(executor.vocab_size, rng))
    return "ran" if finite else "not finite"


def _copied(tensor: RawTensor) -> RawTensor:
    data = tensor.data().copy()
    tensor.release()
    return replace(tensor, data=lambda: data, release=lambda: None)


def _batches(vocab_size: int, rng: np.random.Generator) -> list[Batch]:
    """Two prompts whose blocks lie anywhere, then one more token of each."""
    blocks = rng.permutation(4).tolist()
    tables = blocks[:2], blocks[2:]
    lengths = [int(n) for n in (rng.integers(1, LONGEST), 1)]

    def tokens(n: int) -> list[int]:
        ids: list[int] = rng.integers(0, vocab_size, n).tolist()
        return ids

    prompts = [Chunk(tokens(n), 0, table, min(n, 9)) for n, table in zip(lengths, tables, strict=True)]
    more = [Chunk(tokens(1), n, table, 1) for n, table in zip(lengths, tables, strict=True)]
    return [Batch(prompts), Batch(more)]
