"""Decode steps over buffers that stay where they are, so that CUDA can record one and play it back.

A decode step of a small model is a thousand short kernels, and launching them takes longer than running them.
Steps are padded to a few sizes; each is captured the first time it is needed, and played from then on.
Without CUDA the same function of the same buffers just runs, which is how it is tested.

Shapes: B padded sequences, P padded positions, M blocks of a table = P / block size, T = B tokens, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from puna.core import Batch
from puna.ops.torch_ops import Cache, Span, Step

_HEAD = 3  # numbers of a row before its tables
_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_POSITIONS = 256  # of the shortest step; then doubled
_MOST_PADDING = 4  # times the positions that are really there
_ALWAYS_FINE = 1 << 16  # padded positions that no one needs to save


@dataclass(slots=True)
class _Size:
    """The buffers of one size, and what was captured over them."""

    inputs_BX: Tensor  # int64 on the device: token, position, begin of the local table, then both tables
    staged_BX: Tensor  # the same on the host
    logits_BV: Tensor | None = None
    graph: torch.cuda.CUDAGraph | None = None


class DecodeSteps:
    """Runs batches that are one token of each sequence. `forward` is decoder() of a step -> [R, V].

    The last block of `cache` belongs to padding rows: nothing else may write or read it.
    """

    def __init__(self, forward: Callable[[Step], Tensor], cache: Cache) -> None:
        self._forward, self._cache = forward, cache
        self._sizes: dict[tuple[int, int], _Size] = {}
        self._captures = cache.device.type == "cuda"
        self._pool: Any = None

    def size_of(self, batch: Batch) -> tuple[int, int] | None:
        """(B, P) of the padded step; None for a batch that is no plain decode, or would mostly be padding."""
        chunks = batch.chunks
        plain = all(len(c.tokens) == c.n_logits == 1 and not (c.images or c.adapter) for c in chunks)
        if not plain or not 0 < len(chunks) <= _BATCHES[-1]:
            return None
        lengths = [c.start + 1 for c in chunks]
        n_rows = next(n for n in _BATCHES if n >= len(chunks))
        n_positions = _POSITIONS
        while n_positions < max(lengths):
            n_positions *= 2
        n_padded = n_rows * n_positions
        if n_padded > _ALWAYS_FINE and n_padded > _MOST_PADDING * sum(lengths):
            return None
        return n_rows, n_positions

    def run(self, batch: Batch, size: tuple[int, int]) -> Tensor:
        """Logits of the batch [R, V], valid until the next step."""
        if size not in self._sizes:
            self._sizes[size] = self._buffers(*size)
        found = self._sizes[size]
        self._fill(found, batch)
        if found.graph is None and self._captures:
            with torch.cuda.device(self._cache.device):
                self._captures = self._capture(found)
        if found.graph is not None:
            found.graph.replay()
        else:
            found.logits_BV = self._compute(found)
        assert found.logits_BV is not None
        return found.logits_BV[: len(batch.chunks)]

    def _buffers(self, n_rows: int, n_positions: int) -> _Size:
        width = _HEAD + -(-n_positions // self._cache.block_size) * (2 if self._cache.local_layers else 1)
        staged = torch.zeros((n_rows, width), dtype=torch.int64, pin_memory=self._captures)
        return _Size(torch.zeros_like(staged, device=self._cache.device), staged)

    def _fill(self, size: _Size, batch: Batch) -> None:
        """Rows beyond the batch are token 0 at position 0 of the padding block."""
        rows, cache = size.staged_BX.numpy(), self._cache
        heads, tables = rows[:, :_HEAD], np.split(rows[:, _HEAD:], 2 if cache.local_layers else 1, axis=1)
        heads[:] = 0
        for table, n_blocks in zip(tables, (cache.n_blocks, cache.n_local_blocks), strict=False):
            table[:] = n_blocks - 1
        for i, chunk in enumerate(batch.chunks):
            heads[i] = chunk.tokens[0], chunk.start, chunk.local_start
            _put(tables[0][i], chunk.blocks, 0, chunk.start // cache.block_size + 1)
            if cache.local_layers:
                first = chunk.local_start // cache.block_size
                _put(tables[1][i], chunk.local_blocks, first, chunk.start // cache.block_size + 1)
        size.inputs_BX.copy_(size.staged_BX, non_blocking=True)

    def _compute(self, size: _Size) -> Tensor:
        return self._forward(_step(size.inputs_BX, self._cache))

    def _capture(self, size: _Size) -> bool:
        """Record the step; False where this model cannot be, as a kernel of it waits for the host."""
        graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what libraries set up at their first call must not be recorded
            for _ in range(2):
                self._compute(size)
        torch.cuda.current_stream().wait_stream(aside)
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                size.logits_BV = self._compute(size)
        except RuntimeError:
            torch.cuda.synchronize()
            return False
        size.graph, self._pool = graph, graph.pool()
        return True


def _put(row: Any, blocks: Any, first: int, end: int) -> None:
    """Blocks first .. end-1 of a sequence into its row of a table."""
    assert end - first <= len(blocks), "the block table ends before the chunk"
    row[first:end] = np.asarray(blocks[: end - first], np.int64)


def _step(inputs_BX: Tensor, cache: Cache) -> Step:
    """The step that the buffers say; all of it on the device."""
    tokens_B, positions_B, origins_B = inputs_BX[:, :_HEAD].unbind(1)
    tables = inputs_BX[:, _HEAD:].chunk(2 if cache.local_layers else 1, dim=1)
    slots_BP = _slots(tables[0], torch.zeros_like(origins_B), positions_B, cache)
    local_BP = _slots(tables[1], origins_B, positions_B, cache) if cache.local_layers else None
    rows_B, own_B1 = torch.arange(len(inputs_BX), device=cache.device), positions_B[:, None]
    return Step(
        tokens_T=tokens_B,
        positions_T=positions_B,
        slots_T=slots_BP.gather(1, own_B1)[:, 0],
        spans=(Span(rows_B[:, None], slots_BP, own_B1, None, local_BP),),
        wanted_R=rows_B,
        cache=cache,
        local_slots_T=None if local_BP is None else local_BP.gather(1, own_B1)[:, 0],
    )


def _slots(table_BM: Tensor, origins_B: Tensor, positions_B: Tensor, cache: Cache) -> Tensor:
    """Cache slots [B, P] by tables that are filled from the block of `origins_B` to that of `positions_B`.

    Elsewhere stands its own first slot: a weight of 0 times whatever lies in another might be no number.
    """
    n, in_block = cache.block_size, torch.arange(cache.block_size, device=cache.device)
    slots_BP = (table_BM[:, :, None] * n + in_block).flatten(1)
    positions_P = torch.arange(slots_BP.shape[1], device=cache.device)
    is_there = (positions_P <= positions_B[:, None]) & (positions_P >= origins_B[:, None])
    return torch.where(is_there, slots_BP, slots_BP.gather(1, origins_B[:, None]))
