"""Matrices of integers in packed words, and of 8-bit floats, as releases quantized by others hold them.

Here are bits and numbers only; which tensors of a release make a matrix is in matrices.py. A value is
(code - zero) * scale, with a zero and a scale for every group of inputs of an output. Libraries compute that
in the type of their scales; `blocks` keeps the product unrounded where a format of formats.CODED holds it,
and gives the rounded one, as they do, where none does.

Shapes: O outputs, I inputs, G groups of inputs, W words of a row, X any number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile
from puna.weights.blocks.formats import FORMATS, n_bytes
from puna.weights.blocks.quant import E4M3_VALUES, quantize

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_BLOCK = 32  # values of a block of all formats of CODED
_CHUNK = 1 << 22  # values worked on at a time
# Where AWQ's kernels have the outputs 0 to 7 among the eight fields of a word, lowest bits first.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class IntMatrix:
    """`group_I` says the group of each input where they are not neighbours."""

    codes_OI: Bytes
    zeros_OG: NDArray[np.int16]
    scales_OG: Floats
    group_size: int
    group_I: NDArray[np.int64] | None = None


def unpack(words: NDArray[Any], bits: int) -> Bytes:
    """Fields of 2, 4 or 8 bits of 32-bit words [X, W], lowest first -> [X, W * 32 / bits]."""
    fields = words.view(np.uint8)[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
    return (fields & np.uint8((1 << bits) - 1)).reshape(len(words), -1)


def unpack_awq(words: NDArray[Any]) -> Bytes:
    """AWQ's order of eight outputs in a word, [X, W] -> [X, 8 W]."""
    fields = unpack(words, 4).reshape(len(words), -1, 8)
    return fields[..., _AWQ_PLACES].reshape(len(words), -1)


def int_kind(bits: int, symmetric: bool, scale_kind: str, n_in: int, group_size: int, shuffled: bool) -> str:
    """The format that holds such a matrix: one of CODED without any rounding, or else that of the scales."""
    aligned = n_in % _BLOCK == 0 and (group_size % _BLOCK == 0 or group_size >= n_in)
    if shuffled or not aligned or (bits == 8 and not symmetric):
        return scale_kind
    if bits == 4 and symmetric:
        return "INT4"
    # 15 zeros times a scale of 16 bits fit a float32, times one of 32 bits they would be rounded.
    return "INT4_MIN" if bits == 4 and scale_kind != "F32" else "INT8"


def blocks(matrix: IntMatrix, kind: str) -> Bytes:
    """The matrix as `kind`, which int_kind chose -> uint8 [n_bytes(kind, (O, I))]."""
    shape = matrix.codes_OI.shape
    out = np.empty((shape[0], n_bytes(kind, shape) // max(1, shape[0])), np.uint8)
    step = max(1, _CHUNK // max(1, shape[1]))
    encode = _plain if FORMATS[kind].block_len == 1 else _coded
    with np.errstate(all="ignore"):  # scales of a damaged file
        for at in range(0, shape[0], step):
            rows = slice(at, at + step)
            out[rows] = encode(matrix, rows, kind).reshape(-1, out.shape[1])
    return out.reshape(-1)


def _plain(matrix: IntMatrix, rows: slice, kind: str) -> Bytes:
    group_I = matrix.group_I
    if group_I is None:
        group_I = np.arange(matrix.codes_OI.shape[1]) // matrix.group_size
    zeros_OI = matrix.zeros_OG[rows][:, group_I]
    values_OI = (matrix.codes_OI[rows] - zeros_OI).astype(np.float32) * matrix.scales_OG[rows][:, group_I]
    return quantize(values_OI, kind)


def _coded(matrix: IntMatrix, rows: slice, kind: str) -> Bytes:
    codes_OI = matrix.codes_OI[rows]
    n_out, n_in = codes_OI.shape
    group_N = np.arange(0, n_in, _BLOCK) // matrix.group_size
    scales_ON, zeros_ON = matrix.scales_OG[rows][:, group_N], matrix.zeros_OG[rows][:, group_N]
    out = np.empty((n_out, n_in // _BLOCK), FORMATS[kind].layout)
    out["d"] = scales_ON
    if kind == "INT8":
        codes = codes_OI.reshape(n_out, -1, _BLOCK) - zeros_ON[..., None]
        out["qs"] = codes.astype(np.int8)
        return out.view(np.uint8)
    if kind == "INT4_MIN":
        out["m"] = -(scales_ON * zeros_ON.astype(np.float32))
    halves = codes_OI.reshape(n_out, -1, 2, _BLOCK // 2)
    out["qs"] = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
    return out.view(np.uint8)


def refuse_nan(name: str, codes: Bytes) -> None:
    """Raise BadFile where an E4M3 number is none, which kernels do not expect."""
    if ((codes & 127) == 127).any():
        raise BadFile(f"{name!r} holds values that are not a number (NaN); get it again")


def fp8_kind(n_in: int, columns: int) -> str:
    """FP8 where a block has one scale; else F32, to which each product is rounded once."""
    return "FP8" if n_in % _BLOCK == 0 and columns % _BLOCK == 0 else "F32"


def fp8_blocks(codes_OI: Bytes, scales_OG: Floats, columns: int, kind: str) -> Bytes:
    """E4M3 numbers with a scale for every `columns` inputs of a row, as `kind`, which fp8_kind chose."""
    n_out, n_in = codes_OI.shape
    if kind == "F32":
        scales_OI = scales_OG[:, np.arange(n_in) // columns]
        with np.errstate(all="ignore"):
            return quantize(E4M3_VALUES.take(codes_OI) * scales_OI, kind)
    out = np.empty((n_out, n_in // _BLOCK), FORMATS[kind].layout)
    out["d"] = scales_OG[:, np.arange(0, n_in, _BLOCK) // columns]
    out["qs"] = codes_OI.reshape(n_out, -1, _BLOCK)
    return out.view(np.uint8).reshape(-1)
