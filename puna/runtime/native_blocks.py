"""Blocks of the native executor's cache as bytes: engine.transfer.BlockStore. No step may be running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from puna import _native
from puna.model.config import ModelConfig
from puna.model.rope import RopeTable


class MovableBlocks:
    """What of NativeExecutor moves blocks."""

    _plan: Any
    local_window: int
    cache_format: str

    @property
    def block_bytes(self) -> int:
        """Of one block, all layers that see everything."""
        return int(self._plan.block_bytes())

    @property
    def local_block_bytes(self) -> int:
        """Of one block, all layers that have blocks of their own; 0 where none has."""
        return int(self._plan.block_bytes(local=True)) if self.local_window else 0

    def read_blocks(self, blocks: Sequence[int], *, local: bool) -> NDArray[np.uint8]:
        """[blocks, bytes of a block], copied."""
        found: NDArray[np.uint8] = self._plan.read_blocks(np.array(blocks, np.int32), local)
        return found

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8], *, local: bool) -> None:
        """Put `data` [blocks, bytes of a block] into the cache."""
        self._plan.write_blocks(np.array(blocks, np.int32), np.ascontiguousarray(data), local)


def cache_format(cfg: ModelConfig, rope: RopeTable, cache_type: str, target: str, window: int) -> str:
    """What the bytes of a block depend on beside weights and tokens: layout, rotation, and the kernels."""
    rotation = crc32(np.array([*rope.frequencies, rope.attention_factor], np.float64).tobytes())
    shape = f"{cfg.n_layers}x{cfg.n_kv_heads}x{cfg.head_dim}x{_native.BLOCK_TOKENS}"
    return f"native {_native.chosen_target(target)} {cache_type} {shape} window {window} rope {rotation:08x}"
