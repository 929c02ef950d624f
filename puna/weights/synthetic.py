"""Seeded random checkpoints of any shape, so that big models can be measured and tested without a download.

Each tensor gets the block format that llama.cpp's quantizer gives it in a file of that type (its
llama-quant.cpp; held to it by tests/golden/llama_cpp_kinds.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from puna.core import BadValue, Unsupported, closest
from puna.model import names
from puna.model.config import ModelConfig
from puna.weights.describe import gguf_metadata, rope_factors
from puna.weights.formats import FORMATS
from puna.weights.llama4_metadata import llama4_metadata
from puna.weights.load import Checkpoint
from puna.weights.quant import quantize, random_blocks
from puna.weights.tensor import RawTensor
from puna.weights.values import Metadata, Value, ValueType


@dataclass(frozen=True, slots=True)
class FileType:
    number: int  # general.file_type, llama.cpp's LLAMA_FTYPE
    kind: str  # of matrices without a rule of their own


FILE_TYPES: Mapping[str, FileType] = {
    "f32": FileType(0, "F32"),
    "f16": FileType(1, "F16"),
    "bf16": FileType(32, "BF16"),
    "q8_0": FileType(7, "Q8_0"),
    "q4_0": FileType(2, "Q4_0"),
    "q4_1": FileType(3, "Q4_1"),
    "q4_k_m": FileType(15, "Q4_K"),
}

# What llama.cpp takes instead where rows are not whole blocks of 256; where they are not of 32 either: F16.
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


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


def tensor_kind(config: ModelConfig, quant: str, name: str, shape: tuple[int, ...]) -> str:
    """The block format of one tensor (our name) in a file of type `quant`."""
    kind = FILE_TYPES[quant].kind
    if len(shape) == 1 or name.endswith(".router"):
        return "F32"
    if name == "output" or (name == "tok_embeddings" and config.tied):
        kind = "Q6_K" if kind.startswith("Q4") else kind
    elif quant == "q4_k_m" and name.endswith((".wv", ".w2", "_w2")):
        kind = _more_precise(config, int(name.split(".")[1]), name.endswith(".wv"))
    if shape[-1] % FORMATS[kind].block_len:
        kind = _FALLBACK.get(kind, "F16")
    return "F16" if shape[-1] % FORMATS[kind].block_len else kind


def _more_precise(config: ModelConfig, layer: int, is_wv: bool) -> str:
    """Q4_K_M keeps values and down projections finer in the first and last eighth, and in every third layer.

    In a 70B (80 layers, grouped queries) eight query heads share a value head, so the others stay finer too.
    """
    n = config.n_layers
    if layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2:
        return "Q6_K"
    is_70b = n == 80 and config.n_heads != config.n_kv_heads
    return "Q5_K" if is_wv and is_70b else "Q4_K"


def _random_tensor(kind: str, shape: tuple[int, ...], seed: int, name: str) -> NDArray[np.uint8]:
    rng = np.random.Generator(np.random.PCG64([seed, crc32(name.encode())]))
    if len(shape) > 1:
        return random_blocks(kind, shape, rng, std=shape[-1] ** -0.5)
    noise = random_blocks(kind, shape, rng, std=0.1).view("<f4")
    near_one: NDArray[np.uint8] = (1 + noise).view(np.uint8)
    return near_one
