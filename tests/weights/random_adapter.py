"""Random adapters of any model, without a file."""

from __future__ import annotations

import numpy as np

from puna.model.config import ModelConfig
from puna.model.names import adaptable_shapes
from puna.weights.adapter import Adapter, Part
from puna.weights.blocks.quant import quantize
from puna.weights.blocks.tensor import RawTensor


def random_adapter(cfg: ModelConfig, seed: int, kind: str = "F32", rank: int = 8) -> Adapter:
    """Of all matrices that may have one; strong enough to change every answer."""
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> RawTensor:
        data = quantize(rng.normal(0, shape[1] ** -0.5, shape).astype(np.float32), kind)
        return RawTensor(name, kind, shape, lambda: data)

    return Adapter(
        {
            name: Part(tensor(name, rank, n_in), tensor(name, n_out, rank), 0.5)
            for name, (n_out, n_in) in adaptable_shapes(cfg).items()
        }
    )
