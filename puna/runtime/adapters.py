"""Adapters of executors whose matrices are arrays or tensors: all that may have some are Adaptable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from puna.model.config import ModelConfig
from puna.model.names import adaptable_shapes
from puna.ops.adapters import Adaptable, LowRank
from puna.weights.adapter import Adapter
from puna.weights.blocks.tensor import RawTensor

Prepared = dict[str, LowRank]


class AdaptableWeights:
    """The weights of a model by our names, `tensors`, with room for adapters.

    `convert` makes what the ops multiply of one matrix of an adapter.
    """

    def __init__(
        self, cfg: ModelConfig, tensors: Mapping[str, Any], convert: Callable[[RawTensor], Any]
    ) -> None:
        self._matrices = {name: Adaptable(tensors[name]) for name in adaptable_shapes(cfg)}
        self.tensors: dict[str, Any] = {**tensors, **self._matrices}
        self._convert = convert

    def prepare(self, adapter: Adapter) -> Prepared:
        """What load_adapter needs of a weights.adapter.Adapter. Safe in any thread."""
        return {
            name: LowRank(self._convert(part.down), self._convert(part.up), part.scale)
            for name, part in adapter.parts.items()
        }

    def load(self, number: int, prepared: Prepared) -> None:
        for name, part in prepared.items():
            self._matrices[name].adapters[number] = part

    def unload(self, number: int) -> None:
        for matrix in self._matrices.values():
            matrix.adapters.pop(number, None)
