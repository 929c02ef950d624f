"""Seeded random checkpoints of any shape, so that big models can be measured and tested without a download.

Each tensor gets the block format that it has in a file of that type (mixes.py).
"""

from __future__ import annotations

from functools import partial
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from puna.core import BadValue, Unsupported, closest
from puna.model import names
from puna.model.config import ModelConfig
from puna.weights.blocks.quant import quantize, random_blocks
from puna.weights.blocks.tensor import RawTensor
from puna.weights.describe.config import gguf_metadata, rope_factors
from puna.weights.describe.gguf_llama4 import llama4_metadata
from puna.weights.files.values import Metadata, Value, ValueType
from puna.weights.load import Checkpoint
from puna.weights.quantize.mixes import FILE_TYPES, tensor_kind


def synthetic_checkpoint(config: ModelConfig, quant: str, seed: int = 0) -> Checkpoint:
    """A checkpoint of `config` with random weights, each tensor made when its data() is called.

    Matrices have a standard deviation of 1 / sqrt(row length), which keeps activations near 1; norms lie
    near 1. Equal arguments give equal bytes. Raises BadValue for an unknown `quant`, Unsupported for a rope
    scaling or experts that the file format cannot state, and for images.
    """
    tensors = synthetic_tensors(config, quant, seed)
    factors = rope_factors(config)
    if factors is not None:
        data = quantize(factors, "F32")
        tensors["rope_factors"] = RawTensor("rope_factors", "F32", factors.shape, lambda: data)
    file_type = Value.of(ValueType.UINT32, FILE_TYPES[quant].number)
    described = llama4_metadata(config) if config.experts is not None else gguf_metadata(config)
    metadata = {**described, "general.file_type": file_type}
    return Checkpoint(config, Metadata(metadata), tensors)


def synthetic_tensors(config: ModelConfig, quant: str, seed: int = 0) -> dict[str, RawTensor]:
    """The random weights of `synthetic_checkpoint`, whatever a file could say of `config`."""
    if config.vision is not None or config.cross_attention:
        raise Unsupported("synthetic checkpoints are text models; choose a shape without images")
    if quant not in FILE_TYPES:
        known = tuple(FILE_TYPES)
        raise BadValue(f"unknown quantization {quant!r}{closest(quant, known)}; known: {', '.join(known)}")
    tensors: dict[str, RawTensor] = {}
    for name, shape in names.shapes(config):
        kind = tensor_kind(config, quant, name, shape)
        make = partial(_random_tensor, kind, shape, seed, name)
        tensors[name] = RawTensor(name, kind, shape, make)
    return tensors


def _random_tensor(kind: str, shape: tuple[int, ...], seed: int, name: str) -> NDArray[np.uint8]:
    rng = np.random.Generator(np.random.PCG64([seed, crc32(name.encode())]))
    if len(shape) > 1:
        return random_blocks(kind, shape, rng, std=shape[-1] ** -0.5)
    noise = random_blocks(kind, shape, rng, std=0.1).view("<f4")
    near_one: NDArray[np.uint8] = (1 + noise).view(np.uint8)
    return near_one
