"""The numpy executor: block.py over the reference ops. The oracle of the fast executors, plain and slow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch, Image
from puna.model.block import decoder, hidden
from puna.model.config import ModelConfig
from puna.model.names import assemble
from puna.model.rope import rope_table
from puna.ops.reference import Cache, NumpyOps, Step
from puna.runtime.adapters import AdaptableWeights
from puna.runtime.images import IMAGE_BYTES, Encoded, ImageStore, max_images
from puna.weights.blocks.quant import dequantize


class ReferenceExecutor:
    """A core.Executor over float32 arrays keyed by our names (model/names.py).

    Encoded images are kept up to `image_bytes`, and longer while a step needs them.

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
        image_bytes: int = IMAGE_BYTES,
    ) -> None:
        self.n_blocks = n_blocks
        self.block_size = block_size
        self.vocab_size, self.embedding_dim = cfg.vocab_size, cfg.dim
        self.n_token_ids = cfg.vocab_size + cfg.n_image_embeddings
        self.n_local_blocks = self.local_window = 0  # one block holds all layers
        self.context_length = context_length or cfg.context_length
        self._cfg = cfg
        self._adapters = AdaptableWeights(cfg, tensors, lambda t: dequantize(t.data(), t.kind, t.shape))
        self._weights = assemble(cfg, self._adapters.tensors, rope_table(cfg, self.context_length))
        self.prepare_adapter = self._adapters.prepare  # see core.Executor
        self.load_adapter, self.unload_adapter = self._adapters.load, self._adapters.unload
        self._cache = Cache(cfg.n_layers, n_blocks, block_size, cfg.n_kv_heads * cfg.head_dim)
        self._images = ImageStore(cfg, self._encode, image_bytes)
        self.max_images = max_images(cfg)

    def n_image_positions(self, image: Image) -> int:
        return self._images.n_positions(image)

    def step(self, batch: Batch) -> NDArray[np.float32]:
        return self._run(batch, decoder)

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        return self._run(batch, hidden)

    def _run(self, batch: Batch, compute: Callable[..., Any]) -> NDArray[np.float32]:
        ends = [chunk.start + len(chunk.tokens) for chunk in batch.chunks]
        assert max(ends) <= self.context_length, (ends, self.context_length)
        images = self._images.of(batch)
        ops = NumpyOps(Step.of(batch, self._cache, images))
        rows: NDArray[np.float32] = compute(ops, self._cfg, self._weights, bool(images.seen))
        return rows

    def _encode(self, image: Image) -> Encoded:
        from puna.ops.reference_vision import NumpyVisionOps  # with what it needs: most models see nothing

        return self._images.encode(image, self._weights, lambda tiles: NumpyVisionOps(tiles), np.asarray)

    def close(self) -> None:
        del self._weights, self._cache, self._images, self._adapters
        del self.prepare_adapter, self.load_adapter, self.unload_adapter
