"""Adapters of the native executor: packed like other weights, multiplied by ops beside those of the matrices.

The plan has lists of ops of its own for steps with adapters, made when the first one is loaded. They compute
the same numbers in rows without an adapter: what is not fused there is fused elsewhere without changing any.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna import _native
from puna.core import Batch
from puna.weights.adapter import Adapter
from puna.weights.blocks.formats import n_bytes
from puna.weights.blocks.tensor import RawTensor

_TILE = 16  # rows that are packed together: ranks are padded to whole ones


class PackedPart(NamedTuple):
    """What an adapter adds to one matrix, packed."""

    down: _native.Matrix  # [rank, cols]
    up: _native.Matrix  # [rows, rank]
    scale: float


Prepared = dict[str, PackedPart]


class NativeAdapters:
    """The adapters in a plan. `shapes` are those of the matrices that may have some, by name; `lower` makes
    lists of ops with the given sites and returns the buffers of their results."""

    def __init__(
        self,
        plan: _native.Plan,
        shapes: Mapping[str, tuple[int, ...]],
        lower: Callable[[Mapping[str, int]], list[int]],
    ) -> None:
        self._plan = plan
        self._shapes = shapes
        self._lower: Callable[[Mapping[str, int]], list[int]] | None = lower
        self._sites: dict[str, int] = {}
        self._slots: dict[int, int] = {}  # number of the adapter -> slot
        self.results: list[int] = []  # buffers, of each list of ops

    def load(self, number: int, prepared: Prepared) -> None:
        """Not during a step."""
        if self._lower is not None:
            self._sites = {name: self._plan.site(*shape) for name, shape in self._shapes.items()}
            self.results = self._lower(self._sites)
            self._lower = None
        taken = set(self._slots.values())
        slot = next(i for i in range(len(taken) + 1) if i not in taken)
        for name, part in prepared.items():
            self._plan.set_adapter(slot, self._sites[name], part.down, part.up, part.scale)
        self._slots[number] = slot

    def unload(self, number: int) -> None:
        slot = self._slots.pop(number)
        for site in self._sites.values():
            self._plan.set_adapter(slot, site, None, None, 0.0)

    def of(self, batch: Batch) -> NDArray[np.int32] | None:
        """The slot of each chunk, -1 where it has no adapter; None for a step without any."""
        if not any(chunk.adapter for chunk in batch.chunks):
            return None
        slots = array("i", [self._slots[c.adapter] if c.adapter else -1 for c in batch.chunks])
        return np.frombuffer(slots, np.int32)


def pack(adapter: Adapter) -> Prepared:
    """An adapter's matrices as kernels read them, in memory of their own. Safe in any thread."""
    tensors = [tensor for part in adapter.parts.values() for tensor in (part.down, part.up)]
    sizes = [_native.packed_bytes(t.kind, _padded(t.shape[0]), _padded(t.shape[1])) for t in tensors]
    arena = _native.Arena(sum(sizes) + 64 * len(sizes))
    return {
        name: PackedPart(
            _packed(arena, part.down, rows=_padded(part.down.shape[0])),
            _packed(arena, part.up, cols=_padded(part.up.shape[1])),
            part.scale,
        )
        for name, part in adapter.parts.items()
    }


def _packed(arena: _native.Arena, tensor: RawTensor, rows: int = 0, cols: int = 0) -> _native.Matrix:
    """A matrix of floats with zeros to fill it up to so many rows or columns."""
    n_rows, n_cols = tensor.shape
    shape = rows or n_rows, cols or n_cols
    width = n_bytes(tensor.kind, (1,))
    padded = np.zeros((shape[0], shape[1] * width), np.uint8)
    padded[:n_rows, : n_cols * width] = tensor.data().reshape(n_rows, -1)
    return _native.pack_matrix(arena, tensor.kind, *shape, padded.reshape(-1))


def _padded(rank: int) -> int:
    return -(-rank // _TILE) * _TILE
