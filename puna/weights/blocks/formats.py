"""Block formats of tensors: names, ggml's numbers for them, and how a block lies in memory.

A tensor is rows of blocks; a block holds a fixed number of neighbouring values of one row. Layouts follow
ggml's definition (ggml-common.h) but for CODED. What the bits mean is in quant.py; nothing here knows of
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from puna.core import BadFile, Unsupported

_K = 256  # values of a block of the K and IQ4_XS formats


@dataclass(frozen=True, slots=True)
class BlockFormat:
    name: str
    type_id: int  # ggml's number for it; -1 where GGUF does not have it
    block_len: int  # values
    layout: np.dtype[Any]  # of one block

    @property
    def block_bytes(self) -> int:
        return self.layout.itemsize


def _layout(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    return np.dtype(list(fields))


_D, _M = ("d", "<f2"), ("m", "<f2")  # scale and minimum of a block
_SCALES_12 = ("scales", "u1", 12)
_QH_8, _SCALES_8 = ("qh", "u1", 8), ("scales", "u1", 8)
_SCALE = ("d", "<f4")

GGUF_FORMATS: Mapping[str, BlockFormat] = {
    f.name: f
    for f in (
        BlockFormat("F32", 0, 1, np.dtype("<f4")),
        BlockFormat("F16", 1, 1, np.dtype("<f2")),
        BlockFormat("BF16", 30, 1, np.dtype("<u2")),
        BlockFormat("Q4_0", 2, 32, _layout(_D, ("qs", "u1", 16))),
        BlockFormat("Q4_1", 3, 32, _layout(_D, _M, ("qs", "u1", 16))),
        BlockFormat("Q5_0", 6, 32, _layout(_D, ("qh", "u1", 4), ("qs", "u1", 16))),
        BlockFormat("Q5_1", 7, 32, _layout(_D, _M, ("qh", "u1", 4), ("qs", "u1", 16))),
        BlockFormat("Q8_0", 8, 32, _layout(_D, ("qs", "i1", 32))),
        BlockFormat("Q2_K", 10, _K, _layout(("scales", "u1", 16), ("qs", "u1", 64), _D, _M)),
        BlockFormat("Q3_K", 11, _K, _layout(("qh", "u1", 32), ("qs", "u1", 64), _SCALES_12, _D)),
        BlockFormat("Q4_K", 12, _K, _layout(_D, _M, _SCALES_12, ("qs", "u1", 128))),
        BlockFormat("Q5_K", 13, _K, _layout(_D, _M, _SCALES_12, ("qh", "u1", 32), ("qs", "u1", 128))),
        BlockFormat("Q6_K", 14, _K, _layout(("qs", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D)),
        BlockFormat("IQ4_NL", 20, 32, _layout(_D, ("qs", "u1", 16))),
        BlockFormat("IQ4_XS", 23, _K, _layout(_D, ("sh", "<u2"), ("sl", "u1", 4), ("qs", "u1", 128))),
        BlockFormat("IQ2_XXS", 16, _K, _layout(_D, ("qs", "<u4", (8, 2)))),
        BlockFormat("IQ2_XS", 17, _K, _layout(_D, ("qs", "<u2", 32), ("scales", "u1", 8))),
        BlockFormat("IQ2_S", 22, _K, _layout(_D, ("qs", "u1", 32), ("signs", "u1", 32), _QH_8, _SCALES_8)),
        BlockFormat("IQ3_XXS", 18, _K, _layout(_D, ("qs", "u1", 64), ("signs", "<u4", 8))),
        BlockFormat(
            "IQ3_S", 21, _K, _layout(_D, ("qs", "u1", 64), _QH_8, ("signs", "u1", 32), ("scales", "u1", 4))
        ),
        BlockFormat("IQ1_S", 19, _K, _layout(_D, ("qs", "u1", 32), ("qh", "<u2", 8))),
        BlockFormat("IQ1_M", 29, _K, _layout(("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4))),
        BlockFormat("TQ1_0", 34, _K, _layout(("qs", "u1", 48), ("qh", "u1", 4), _D)),
        BlockFormat("TQ2_0", 35, _K, _layout(("qs", "u1", 64), _D)),
        BlockFormat("MXFP4", 39, 32, _layout(("e", "u1"), ("qs", "u1", 16))),
    )
}

# Codes with float scales, in memory only: what releases quantized by others are read as (packed.py) and what
# kernels take for the formats above that they lack (recode.py). FP8 is E4M3 with a scale; the value of a
# code q is (q - 8) * d in INT4, q * d + m in INT4_MIN, q * d in the others (INT8_16: a scale for each 16).
CODED: Mapping[str, BlockFormat] = {
    f.name: f
    for f in (
        BlockFormat("INT4", -1, 32, _layout(_SCALE, ("qs", "u1", 16))),
        BlockFormat("INT4_MIN", -1, 32, _layout(_SCALE, ("m", "<f4"), ("qs", "u1", 16))),
        BlockFormat("INT8", -1, 32, _layout(_SCALE, ("qs", "i1", 32))),
        BlockFormat("INT8_16", -1, 32, _layout(("d", "<f4", 2), ("qs", "i1", 32))),
        BlockFormat("FP8", -1, 32, _layout(_SCALE, ("qs", "u1", 32))),
    )
}
FORMATS: Mapping[str, BlockFormat] = {**GGUF_FORMATS, **CODED}
FORMAT_OF_TYPE: Mapping[int, BlockFormat] = {f.type_id: f for f in GGUF_FORMATS.values()}

# Types that ggml knows, or once knew, and that Puna does not run; listed to be refused by name.
FOREIGN_TYPES: Mapping[int, str] = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
    40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip

# Q4_0 and IQ4_NL repacked for ARM existed on disk for a few months of 2024; llama.cpp repacks at load since.
_REMOVED = {31, 32, 33, 36, 37, 38}


def format_of_type(type_id: int, tensor: str) -> BlockFormat:
    """The format with ggml's number `type_id`; raises Unsupported naming the type and its `tensor`."""
    found = FORMAT_OF_TYPE.get(type_id)
    if found is not None:
        return found
    name = FOREIGN_TYPES.get(type_id, f"number {type_id}")
    remedy = "; quantize the model again from its source" if type_id in _REMOVED else ""
    raise Unsupported(
        f"tensor type {name} of {tensor!r} is not supported; supported: {', '.join(GGUF_FORMATS)}{remedy}"
    )


def n_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `shape` (rows first) as `kind`; raises BadFile where rows are not whole blocks."""
    fmt = FORMATS[kind]
    row_len = shape[-1] if shape else 1
    if row_len % fmt.block_len:
        raise BadFile(f"rows of {kind} must be multiples of {fmt.block_len} values, got {row_len}")
    return prod(shape) // fmt.block_len * fmt.block_bytes
