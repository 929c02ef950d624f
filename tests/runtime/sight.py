"""Image encoders of a middling size over weights of zeros, to measure the memory that one picture takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from puna.core import Batch, Chunk, Image, PlacedImage
from puna.model.config import ModelConfig
from puna.model.names import shapes
from puna.model.rope import rope_table
from puna.model.vision_config import Llama4VisionConfig, Llama32VisionConfig
from puna.runtime.native import NativeExecutor
from puna.weights.blocks.tensor import RawTensor

_TEXT = (128, 3, 4, 2, 32, 256, 512, 1e-5, 1e4, 8192)
CONFIGS = {
    "mllama": ModelConfig(
        *_TEXT, tied=False, cross_attention=(1,), n_image_embeddings=8,
        vision=Llama32VisionConfig(224, 320, 6, 2, 4, 1280, 7, 4, (1, 3)),
    ),
    "llama4": ModelConfig(
        *_TEXT, tied=False, vision=Llama4VisionConfig(224, 320, 3, 4, 1280, 7, 0.5, 256, max_tiles=4),
    ),
}  # fmt: skip


def see(config: ModelConfig, peak: Callable[[], int]) -> tuple[int, int]:
    """Most memory of this process before it has seen a picture of all tiles, and after."""
    tensors = {
        name: RawTensor(name, "F32", shape, partial(np.zeros, 4 * int(np.prod(shape)), np.uint8))
        for name, shape in shapes(config)
    }
    ex = NativeExecutor(config, tensors, rope_table(config), cache_tokens=8192, threads=2)
    v = config.vision
    assert v is not None
    n = v.max_tiles + (config.cross_attention == ())
    pixels = np.ones((n, 3, v.tile_size, v.tile_size), np.float32)
    image = Image(pixels, 2, 2, b"all tiles")
    n_positions = ex.n_image_positions(image)
    placed = [PlacedImage(image, range(1, 1 + n_positions))]
    before = peak()
    ids = [1] + [2] * n_positions
    ex.step(Batch([Chunk(ids[:8], 0, range(256), 1, placed)]))
    return before, peak()
