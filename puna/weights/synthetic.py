"""Seeded random checkpoints of any shape, so that big models can be measured and tested without a download.

Each tensor gets the block format that llama.cpp's quantizer gives it in a file of that type (its
llama-quant.cpp; held to it by tests/golden/llama_cpp_kinds.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from puna.core import BadValue, Unsupported, closest
from puna.model import names
from puna.model.config import ModelConfig, RopeScaling
from puna.model.incoming import is_llama4
from puna.model.rope import rope_table
from puna.model.scaling import yarn_mscale
from puna.weights.formats import FORMATS
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
    scaling that the file format cannot state, and for experts or images.
    """
    if is_llama4(config) or config.cross_attention:
        raise Unsupported("synthetic checkpoints are dense text models; choose a shape of Llama 1 to 3.3")
    if quant not in FILE_TYPES:
        known = tuple(FILE_TYPES)
        raise BadValue(f"unknown quantization {quant!r}{closest(quant, known)}; known: {', '.join(known)}")
    tensors: dict[str, RawTensor] = {}
    for name, shape in names.shapes(config):
        kind = tensor_kind(config, quant, name, shape)
        make = partial(_random_tensor, kind, shape, seed, name)
        tensors[name] = RawTensor(name, kind, shape, make)
    factors = _rope_factors(config)
    if factors is not None:
        data = quantize(factors, "F32")
        tensors["rope_factors"] = RawTensor("rope_factors", "F32", factors.shape, lambda: data)
    metadata = _metadata(config) | {"general.file_type": _u32(FILE_TYPES[quant].number)}
    return Checkpoint(config, Metadata(metadata), tensors)


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


def _u32(value: int) -> Value:
    return Value.of(ValueType.UINT32, value)


def _f32(value: float) -> Value:
    return Value.of(ValueType.FLOAT32, value)


def _metadata(config: ModelConfig) -> dict[str, Value]:
    """What from_gguf of model/config.py reads back as `config`; Llama 3's scaling comes back as factors."""
    return {
        "general.architecture": Value.of(ValueType.STRING, "llama"),
        "general.quantization_version": _u32(2),
        "llama.vocab_size": _u32(config.vocab_size),
        "llama.context_length": _u32(config.context_length),
        "llama.embedding_length": _u32(config.dim),
        "llama.block_count": _u32(config.n_layers),
        "llama.feed_forward_length": _u32(config.ffn_dim),
        "llama.attention.head_count": _u32(config.n_heads),
        "llama.attention.head_count_kv": _u32(config.n_kv_heads),
        "llama.attention.key_length": _u32(config.head_dim),
        "llama.attention.value_length": _u32(config.head_dim),
        "llama.attention.layer_norm_rms_epsilon": _f32(config.norm_eps),
        "llama.rope.dimension_count": _u32(config.head_dim),
        "llama.rope.freq_base": _f32(config.rope_theta),
    } | _scaling_metadata(config.rope_scaling)


def _scaling_metadata(scaling: RopeScaling | None) -> dict[str, Value]:
    if scaling is None or scaling.kind in ("llama3", "factors"):
        return {}
    if scaling.kind not in ("linear", "yarn"):
        raise Unsupported(f"GGUF files of Llama cannot state {scaling.kind!r} rope scaling")
    entries = {
        "llama.rope.scaling.type": Value.of(ValueType.STRING, scaling.kind),
        "llama.rope.scaling.factor": _f32(scaling.factor),
    }
    if scaling.kind == "yarn":
        # The reader multiplies YaRN's own factor in again.
        entries["llama.rope.scaling.attn_factor"] = _f32(scaling.attention / yarn_mscale(scaling.factor))
        entries["llama.rope.scaling.original_context_length"] = _u32(scaling.original_context)
        entries["llama.rope.scaling.yarn_beta_fast"] = _f32(scaling.beta_fast)
        entries["llama.rope.scaling.yarn_beta_slow"] = _f32(scaling.beta_slow)
    return entries


def _rope_factors(config: ModelConfig) -> NDArray[np.float32] | None:
    """Divisors of the frequencies [head_dim / 2], which GGUF keeps in rope_freqs.weight, if there are any."""
    scaling = config.rope_scaling
    if scaling is None or not (scaling.factors or scaling.kind == "llama3"):
        return None
    if scaling.kind != "llama3":
        return np.array(scaling.factors, np.float32)
    plain = rope_table(replace(config, rope_scaling=None)).frequencies
    return (plain / rope_table(config).frequencies).astype(np.float32)
