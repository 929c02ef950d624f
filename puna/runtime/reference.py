"""The numpy executor: block.py over the reference ops. The oracle of the fast executors, plain and slow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch
from puna.model.block import decoder
from puna.model.config import ModelConfig
from puna.model.names import assemble
from puna.model.rope import rope_table
from puna.ops.reference import Cache, NumpyOps, Step
from puna.runtime.supported import refuse_uncomputed


class ReferenceExecutor:
    """A core.Executor over float32 arrays keyed by our names (model/names.py).

    `context_length` (default: the checkpoint's own) bounds the positions and fixes the rotary table. Rows
    equal those of another mix of chunks up to float32 rounding, not bit by bit: BLAS sums in an order of
    its own.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        tensors: Mapping[str, NDArray[np.float32]],
        *,
        n_blocks: int,
        block_size: int = 16,
        context_length: int | None = None,
    ) -> None:
        refuse_uncomputed(cfg, native=False)
        self.n_blocks = n_blocks
        self.block_size = block_size
        self.vocab_size = cfg.vocab_size
        self.context_length = context_length or cfg.context_length
        self._cfg = cfg
        self._weights = assemble(cfg, tensors, rope_table(cfg, self.context_length))
        self._cache = Cache(cfg.n_layers, n_blocks, block_size, cfg.n_kv_heads * cfg.head_dim)

    def step(self, batch: Batch) -> NDArray[np.float32]:
        ends = [chunk.start + len(chunk.tokens) for chunk in batch.chunks]
        assert max(ends) <= self.context_length, (ends, self.context_length)
        logits_RV: NDArray[np.float32] = decoder(
            NumpyOps(Step.of(batch, self._cache)), self._cfg, self._weights
        )
        return logits_RV

    def close(self) -> None:
        del self._weights, self._cache
