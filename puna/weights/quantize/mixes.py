"""File types of GGUF: which block format each tensor of a model gets in a file "of type q4_k_m".

The rules are llama.cpp's (its llama-quant.cpp), held to what its quantizer does by
tests/golden/llama_cpp_kinds.json: what is read by every token or sums up many errors is kept finer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from puna.core import BadValue, closest
from puna.model.config import ModelConfig
from puna.weights.blocks.formats import FORMATS


@dataclass(frozen=True, slots=True)
class FileType:
    number: int  # general.file_type, llama.cpp's LLAMA_FTYPE
    kind: str  # of matrices without a rule of their own


FILE_TYPES: Mapping[str, FileType] = {
    "f32": FileType(0, "F32"),
    "f16": FileType(1, "F16"),
    "bf16": FileType(32, "BF16"),
    "q8_0": FileType(7, "Q8_0"),
    "q6_k": FileType(18, "Q6_K"),
    "q5_k_m": FileType(17, "Q5_K"),
    "q5_k_s": FileType(16, "Q5_K"),
    "q5_1": FileType(9, "Q5_1"),
    "q5_0": FileType(8, "Q5_0"),
    "q4_k_m": FileType(15, "Q4_K"),
    "q4_k_s": FileType(14, "Q4_K"),
    "q4_1": FileType(3, "Q4_1"),
    "q4_0": FileType(2, "Q4_0"),
    "iq4_nl": FileType(25, "IQ4_NL"),
    "iq4_xs": FileType(30, "IQ4_XS"),
    "q3_k_l": FileType(13, "Q3_K"),
    "q3_k_m": FileType(12, "Q3_K"),
    "q3_k_s": FileType(11, "Q3_K"),
    "q2_k": FileType(10, "Q2_K"),
}

# What is taken instead where rows are not whole blocks of 256; where they are not of 32 either: F16.
_FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
_FLOATS = ("F32", "F16", "BF16")


def file_type(name: str) -> FileType:
    """Raises BadValue for an unknown name, with the closest known one."""
    if name not in FILE_TYPES:
        raise BadValue(
            f"unknown quantization {name!r}{closest(name, tuple(FILE_TYPES))}; known: {', '.join(FILE_TYPES)}"
        )
    return FILE_TYPES[name]


def tensor_kind(
    config: ModelConfig, quant: str, name: str, shape: tuple[int, ...], *, weighted: bool = False
) -> str:
    """The block format of one tensor (our name) in a file of type `quant`; `weighted` by importances."""
    kind = wanted_kind(config, quant, name, shape, weighted=weighted)
    if shape[-1] % FORMATS[kind].block_len:
        kind = _FALLBACK.get(kind, "F16")
    return "F16" if shape[-1] % FORMATS[kind].block_len else kind


def wanted_kind(
    config: ModelConfig, quant: str, name: str, shape: tuple[int, ...], *, weighted: bool = False
) -> str:
    """tensor_kind() where rows are long enough for every format."""
    kind = FILE_TYPES[quant].kind
    if len(shape) == 1 or name.endswith(".router"):
        return "F32"
    if kind in _FLOATS:
        return kind
    if name == "output" or (name == "tok_embeddings" and config.tied):
        return kind if kind == "Q8_0" else "Q6_K"
    if name.endswith(".wv"):
        return _value_kind(config, quant, int(name.split(".")[1]))
    if name.endswith((".w2", "_w2")):
        return _down_kind(config, quant, int(name.split(".")[1]), weighted)
    if name.endswith(".wo"):
        return {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}.get(quant, kind)
    return kind


def _value_kind(config: ModelConfig, quant: str, layer: int) -> str:
    kind = FILE_TYPES[quant].kind
    queries_each = config.n_heads // config.n_kv_heads
    if quant == "q2_k":
        kind = "Q4_K" if queries_each >= 4 else "Q3_K"
    elif quant == "q3_k_m":
        kind = "Q5_K" if layer < 2 else "Q4_K"
    elif quant == "q3_k_l" or (quant in ("iq4_nl", "iq4_xs") and queries_each >= 4):
        kind = "Q5_K"
    elif quant in ("q4_k_m", "q5_k_m") and _is_finer(config, layer):
        kind = "Q6_K"
    elif quant == "q4_k_s" and layer < 4:
        kind = "Q5_K"
    # In a 70B (80 layers, grouped queries) eight query heads share a value head: a little more costs nothing.
    is_70b = config.n_layers == 80 and queries_each > 1
    return "Q5_K" if is_70b and kind in ("Q3_K", "Q4_K") else kind


def _down_kind(config: ModelConfig, quant: str, layer: int, weighted: bool) -> str:
    kind = FILE_TYPES[quant].kind
    is_first_eighth = layer < config.n_layers // 8
    if quant == "q2_k":
        return "Q3_K"
    if quant == "q3_k_m":
        return "Q5_K" if layer < config.n_layers // 16 else "Q4_K"
    if quant == "q3_k_l":
        return "Q5_K"
    if quant in ("q4_k_m", "q5_k_m"):
        return "Q6_K" if _is_finer(config, layer) else kind
    if is_first_eighth and (quant == "q4_k_s" or (quant in ("iq4_nl", "iq4_xs") and not weighted)):
        return "Q5_K"
    if is_first_eighth and weighted:
        return {"q4_0": "Q4_1", "q5_0": "Q5_1"}.get(quant, kind)
    return kind


def _is_finer(config: ModelConfig, layer: int) -> bool:
    """The first and the last eighth of the layers, and every third one between."""
    n = config.n_layers
    return layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
