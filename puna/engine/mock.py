"""A model without weights, for tests of everything above the executor."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch, Chunk, Image, PlacedImage

_N_ROWS = 509  # different rows of logits before the bonus


@lru_cache
def _noise(vocab_size: int) -> NDArray[np.float32]:
    """Rows of normal noise, each the one before it shifted by one."""
    noise = np.random.default_rng(0).normal(size=_N_ROWS + vocab_size - 1).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(noise, vocab_size)


class MockExecutor:
    """Runs steps whose logits are a function of what is really in the cache blocks.

    A hash of a token, of the part of an image there, and of all before it stands for the keys and values of a
    position. A step writes those of each chunk to its slots and reads all earlier ones back through the block
    table, so that a block that is shared too early, shared at another place, used twice or freed too soon
    gives other logits. With a `local_window` logits depend on a second hash as well, of what precedes in the
    window, which is in local blocks only. The model likes to count upwards, so that guesses are right now
    and then.
    """

    def __init__(
        self,
        vocab_size: int = 64,
        context_length: int = 256,
        n_blocks: int = 64,
        block_size: int = 4,
        n_local_blocks: int = 0,
        local_window: int = 0,
        max_images: int | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_token_ids = vocab_size
        self.embedding_dim = min(16, vocab_size)
        self.context_length = context_length
        self.n_blocks = n_blocks
        self.max_images = max_images
        self.block_size = block_size
        self.n_local_blocks = n_local_blocks
        self.local_window = local_window
        self.is_closed = False
        self.adapters: set[int] = set()
        self._rows_NV = _noise(vocab_size)
        self._blocks = [array("I", [0]) * block_size for _ in range(n_blocks)]
        self._local_blocks = [array("I", [0]) * block_size for _ in range(n_local_blocks)]

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """Logits [sum of n_logits, vocab_size]."""
        return self._run(batch, self.vocab_size)

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """Rows [sum of n_logits, embedding_dim]: the beginnings of logits."""
        return self._run(batch, self.embedding_dim)

    def _run(self, batch: Batch, n_columns: int) -> NDArray[np.float32]:
        assert not self.is_closed
        assert all(chunk.adapter in self.adapters for chunk in batch.chunks if chunk.adapter)
        caches = [self._read(chunk) for chunk in batch.chunks]  # before any write, as if all ran at once
        local_caches = [self._read_local(chunk) for chunk in batch.chunks]
        written: set[tuple[int, int]] = set()
        written_local: set[tuple[int, int]] = set()
        rows: list[NDArray[np.float32]] = []
        for chunk, cache, local in zip(batch.chunks, caches, local_caches, strict=True):
            for i, token in enumerate(chunk.tokens):
                self._append(cache, local, token, chunk.images, chunk.adapter)
                if i >= len(chunk.tokens) - chunk.n_logits:
                    rows.append(self._row(cache, local, token)[:n_columns])
            self._write(chunk, cache, written)
            self._write_local(chunk, local, written_local)
        return np.array(rows, np.float32).reshape(len(rows), n_columns)

    def logits(
        self, tokens: Sequence[int], images: Sequence[PlacedImage] = (), adapter: int = 0
    ) -> NDArray[np.float32]:
        """What step() must give after these tokens: [vocab_size]."""
        cache, local = array("I"), array("I")
        for token in tokens:
            self._append(cache, local, token, images, adapter)
        return self._row(cache, local, tokens[-1])

    def n_image_positions(self, image: Image) -> int:
        return len(image.pixels)

    @property
    def cache_format(self) -> str:
        return f"mock {self.vocab_size} {self.block_size} {self.local_window}"

    @property
    def block_bytes(self) -> int:
        return 4 * self.block_size

    @property
    def local_block_bytes(self) -> int:
        return 4 * self.block_size if self.local_window else 0

    def read_blocks(self, blocks: Sequence[int], *, local: bool) -> NDArray[np.uint8]:
        cache = self._local_blocks if local else self._blocks
        values = np.array([cache[block] for block in blocks], "<u4").reshape(len(blocks), self.block_size)
        return values.view(np.uint8)

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8], *, local: bool) -> None:
        cache = self._local_blocks if local else self._blocks
        for block, values in zip(blocks, np.ascontiguousarray(data).view("<u4"), strict=True):
            cache[block] = array("I", values.tolist())

    def close(self) -> None:
        self.is_closed = True

    def prepare_adapter(self, adapter: object) -> object:
        return adapter

    def load_adapter(self, number: int, prepared: object) -> None:
        self.adapters.add(number)

    def unload_adapter(self, number: int) -> None:
        self.adapters.remove(number)

    def _append(
        self,
        cache: array[int],
        local: array[int],
        token: int,
        images: Sequence[PlacedImage],
        adapter: int,
    ) -> None:
        """Extend both caches of a sequence by one position; an adapter makes other keys of all of them."""
        position = len(cache)
        contents = _contents(token, position, images)
        cache.append(crc32(contents, cache[-1] if cache else adapter))
        if self.local_window:
            opens = position % self.local_window == 0
            local.append(crc32(contents, 1 + adapter if opens else local[-1]))

    def _row(self, cache: array[int], local: array[int], last: int) -> NDArray[np.float32]:
        n_seen = (len(cache) - 1) % self.local_window + 1 if self.local_window else 0
        digest = crc32(cache.tobytes(), crc32(local[len(local) - n_seen :].tobytes()))
        logits_V: NDArray[np.float32] = self._rows_NV[digest % _N_ROWS].copy()
        if digest >> 16 & 3:
            logits_V[(last + 1) % self.vocab_size] += 4
        return logits_V

    def _read(self, chunk: Chunk) -> array[int]:
        """The cache of the positions before the chunk."""
        cache = array("I")
        for block in chunk.blocks[: -(-chunk.start // self.block_size)]:
            cache += self._blocks[block]
        assert len(cache) >= chunk.start
        del cache[chunk.start :]
        return cache

    def _read_local(self, chunk: Chunk) -> array[int]:
        """The local cache of the positions from local_start on."""
        cache = array("I")
        if not self.local_window:
            return cache
        assert chunk.local_start == chunk.start // self.local_window * self.local_window
        for block in chunk.local_blocks:
            cache += self._local_blocks[block]
        assert len(cache) >= chunk.start + len(chunk.tokens) - chunk.local_start
        del cache[chunk.start - chunk.local_start :]
        return cache

    def _write_local(self, chunk: Chunk, cache: array[int], written: set[tuple[int, int]]) -> None:
        for i in range(chunk.start - chunk.local_start, len(cache)):
            block, offset = chunk.local_blocks[i // self.block_size], i % self.block_size
            assert 0 <= block < self.n_local_blocks
            assert (block, offset) not in written
            written.add((block, offset))
            self._local_blocks[block][offset] = cache[i]

    def _write(self, chunk: Chunk, cache: array[int], written: set[tuple[int, int]]) -> None:
        end = chunk.start + len(chunk.tokens)
        assert len(cache) == end <= min(self.context_length, len(chunk.blocks) * self.block_size)
        assert all(0 <= token < self.n_token_ids for token in chunk.tokens)
        for position in range(chunk.start, end):
            block, offset = chunk.blocks[position // self.block_size], position % self.block_size
            assert 0 <= block < self.n_blocks
            assert (block, offset) not in written
            written.add((block, offset))
            self._blocks[block][offset] = cache[position]


def _contents(token: int, position: int, images: Sequence[PlacedImage]) -> bytes:
    contents = token.to_bytes(4, "little")
    for placed in images:
        if position in placed.positions:
            contents += placed.image.digest + bytes([placed.positions.index(position)])
    return contents
