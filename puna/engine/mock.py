"""A model without weights, for tests of everything above the executor."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cache
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch, Chunk

_N_ROWS = 509  # different rows of logits before the bonus


@cache
def _noise(vocab_size: int) -> NDArray[np.float32]:
    """Rows of normal noise, each the one before it shifted by one."""
    noise = np.random.default_rng(0).normal(size=_N_ROWS + vocab_size - 1).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(noise, vocab_size)


class MockExecutor:
    """Runs steps whose logits are a function of the tokens that are really in the cache blocks.

    Tokens stand for their keys and values: a step writes those of each chunk to its slots and reads all
    earlier ones back through the block table. A block that is shared too early, used twice or freed too
    soon gives other logits. The model likes to count upwards, so that guesses are right now and then.
    """

    def __init__(
        self, vocab_size: int = 64, context_length: int = 256, n_blocks: int = 64, block_size: int = 4
    ) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.n_blocks = n_blocks
        self.block_size = block_size
        self.is_closed = False
        self._rows_NV = _noise(vocab_size)
        self._blocks = [array("i", [-1]) * block_size for _ in range(n_blocks)]

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """Logits [sum of n_logits, vocab_size]."""
        assert not self.is_closed
        pasts = [self._read(chunk) for chunk in batch.chunks]  # before any write, as if all ran at once
        written: set[tuple[int, int]] = set()
        ends: list[array[int]] = []
        for chunk, tokens in zip(batch.chunks, pasts, strict=True):
            self._write(chunk, written)
            n_past = len(tokens) + len(chunk.tokens) - chunk.n_logits
            tokens.extend(chunk.tokens)
            ends += [tokens[: n_past + i + 1] for i in range(chunk.n_logits)]
        return self.logits(ends)

    def logits(self, sequences: Sequence[array[int]]) -> NDArray[np.float32]:
        """Logits after the last token of each sequence: [len(sequences), vocab_size]."""
        hashes = [crc32(tokens.tobytes()) for tokens in sequences]
        logits_RV: NDArray[np.float32] = self._rows_NV[[h % _N_ROWS for h in hashes]]
        for i, tokens in enumerate(sequences):
            logits_RV[i, (tokens[-1] + 1) % self.vocab_size] += 4 * (hashes[i] >> 16 & 3 > 0)
        return logits_RV

    def close(self) -> None:
        self.is_closed = True

    def _read(self, chunk: Chunk) -> array[int]:
        """The tokens before the chunk, as the cache has them."""
        tokens: array[int] = array("i")
        for block in chunk.blocks[: -(-chunk.start // self.block_size)]:
            tokens += self._blocks[block]
        del tokens[chunk.start :]
        assert len(tokens) == chunk.start
        assert -1 not in tokens
        return tokens

    def _write(self, chunk: Chunk, written: set[tuple[int, int]]) -> None:
        assert 0 <= chunk.n_logits <= len(chunk.tokens)
        assert (
            0
            < chunk.start + len(chunk.tokens)
            <= min(self.context_length, len(chunk.blocks) * self.block_size)
        )
        for position, token in enumerate(chunk.tokens, chunk.start):
            assert 0 <= token < self.vocab_size
            block, offset = chunk.blocks[position // self.block_size], position % self.block_size
            assert 0 <= block < self.n_blocks
            assert (block, offset) not in written
            written.add((block, offset))
            self._blocks[block][offset] = token
