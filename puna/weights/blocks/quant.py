"""What the bits of quantized blocks mean: exact values, encoders for the simple formats, random tensors.

Rounding follows ggml's definition (ggml-quants.c); `dequantize` gives the very float32 numbers that the gguf
package gives. Layouts are in formats.py.

Shapes: B blocks, L values of a block, G groups with a scale of their own inside a block, N values of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadValue
from puna.weights.blocks.formats import FORMATS, n_bytes

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Blocks = NDArray[Any]  # structured array, one element a block

_CHUNK = 1 << 16  # values worked on at a time, so that temporaries stay in the cache


# The 16 values of IQ4_NL and IQ4_XS (ggml's kvalues_iq4nl), spaced as weights are distributed.
_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)


def dequantize(data: Bytes, kind: str, shape: tuple[int, ...]) -> Floats:
    """The values of a tensor as a new float32 array of `shape`.

    `data` is the tensor as the file holds it: contiguous, n_bytes(kind, shape) long. Infinite or undefined
    scales give infinite or undefined values, without a warning.
    """
    fmt, decode = FORMATS[kind], _DECODERS.get(kind) or _decode_codes(kind)
    assert data.dtype == np.uint8
    assert data.size == n_bytes(kind, shape), (kind, shape, data.size)
    blocks_B = data.reshape(-1).view(fmt.layout)
    out = np.empty(blocks_B.size * fmt.block_len, np.float32)
    with np.errstate(all="ignore"):
        for at in range(0, out.size, _CHUNK):
            first, last = at // fmt.block_len, (at + _CHUNK) // fmt.block_len
            out[at : at + _CHUNK] = decode(blocks_B[first:last]).reshape(-1)
    return out.reshape(shape)


def _decode_f16(x_B: Blocks) -> Floats:
    return x_B.astype(np.float32)


def _decode_bf16(x_B: Blocks) -> Floats:
    return (x_B.astype(np.uint32) << 16).view(np.float32)


def _f32(x: NDArray[Any], ndim: int) -> Floats:
    """As float32, with trailing axes of length 1 up to `ndim`."""
    return x.reshape(x.shape + (1,) * (ndim - x.ndim)).astype(np.float32)


def _crumbs(packed_BN: NDArray[Any], bits: int, width: int) -> Bytes:
    """Fields of `bits` bits -> [B, N * 8 / bits].

    In every ggml format the lowest fields of `width` neighbouring bytes come first, then the next fields of
    the same bytes.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    fields = (packed_BN.reshape(len(packed_BN), -1, 1, width) >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed_BN), -1)


def _high_bit(qh_BN: NDArray[Any]) -> Bytes:
    """The fifth bits of Q5_0 and Q5_1: 32 bits, value i in bit i -> [B, 32], each 0 or 16."""
    return np.unpackbits(qh_BN, axis=-1, bitorder="little") << np.uint8(4)


def _decode_q4_0(b: Blocks) -> Floats:
    q_BL = _crumbs(b["qs"], 4, 16).astype(np.int8) - np.int8(8)
    return _f32(b["d"], 2) * q_BL.astype(np.float32)


def _decode_q4_1(b: Blocks) -> Floats:
    return _f32(b["d"], 2) * _crumbs(b["qs"], 4, 16).astype(np.float32) + _f32(b["m"], 2)


def _decode_q5_0(b: Blocks) -> Floats:
    q_BL = (_crumbs(b["qs"], 4, 16) | _high_bit(b["qh"])).astype(np.int8) - np.int8(16)
    return _f32(b["d"], 2) * q_BL.astype(np.float32)


def _decode_q5_1(b: Blocks) -> Floats:
    q_BL = _crumbs(b["qs"], 4, 16) | _high_bit(b["qh"])
    return _f32(b["d"], 2) * q_BL.astype(np.float32) + _f32(b["m"], 2)


def _decode_q8_0(b: Blocks) -> Floats:
    q_BL: Floats = b["qs"].astype(np.float32)
    return q_BL * _f32(b["d"], 2)


def _decode_q2_k(b: Blocks) -> Floats:
    scale_BG1 = _f32(b["d"], 2) * (b["scales"] & np.uint8(15)).astype(np.float32)
    min_BG1 = _f32(b["m"], 2) * (b["scales"] >> np.uint8(4)).astype(np.float32)
    q_BGN = _crumbs(b["qs"], 2, 32).reshape(-1, 16, 16).astype(np.float32)
    return scale_BG1[..., None] * q_BGN - min_BG1[..., None]


def _decode_q3_k(b: Blocks) -> Floats:
    """Two low bits in qs, a third in qh; a value is 4 less where its bit in qh is clear."""
    scale_BG = _f32(b["d"], 2) * (_scales_q3_k(b["scales"]).astype(np.int8) - np.int8(32)).astype(np.float32)
    high_BL = _crumbs(b["qh"], 1, 32) << np.uint8(2)
    q_BL = (_crumbs(b["qs"], 2, 32) | high_BL).astype(np.int8) - np.int8(4)
    return scale_BG[..., None] * q_BL.reshape(-1, 16, 16).astype(np.float32)


def _scales_q3_k(packed_B12: NDArray[Any]) -> Bytes:
    """Sixteen 6-bit scales -> [B, 16]: low nibbles in 8 bytes, high pairs of bits in 4 bytes."""
    low_BG = _crumbs(packed_B12[:, :8], 4, 8)
    high_BG = _crumbs(packed_B12[:, 8:], 2, 4)
    return low_BG | (high_BG << np.uint8(4))


def _scales_mins_q4_k(packed_B12: NDArray[Any]) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit minimums of Q4_K and Q5_K -> two of [B, 8].

    Bytes 0-3 and 4-7 hold scales and minimums 0-3 in their low six bits; their two high bits top the scales
    and minimums 4-7, whose low nibbles lie in bytes 8-11.
    """
    scale, minimum, low = packed_B12[:, :4], packed_B12[:, 4:8], packed_B12[:, 8:]
    scale_B8 = np.concatenate((scale & 0x3F, (low & 0x0F) | ((scale >> 2) & 0x30)), axis=-1)
    min_B8 = np.concatenate((minimum & 0x3F, (low >> 4) | ((minimum >> 2) & 0x30)), axis=-1)
    return scale_B8.astype(np.float32), min_B8.astype(np.float32)


def _scale_and_subtract(b: Blocks, q_BL: Bytes) -> Floats:
    scale_BG, min_BG = _scales_mins_q4_k(b["scales"])
    scale_BG, min_BG = _f32(b["d"], 2) * scale_BG, _f32(b["m"], 2) * min_BG
    return scale_BG[..., None] * q_BL.reshape(-1, 8, 32).astype(np.float32) - min_BG[..., None]


def _decode_q4_k(b: Blocks) -> Floats:
    return _scale_and_subtract(b, _crumbs(b["qs"], 4, 32))


def _decode_q5_k(b: Blocks) -> Floats:
    return _scale_and_subtract(b, _crumbs(b["qs"], 4, 32) | (_crumbs(b["qh"], 1, 32) << np.uint8(4)))


def _decode_q6_k(b: Blocks) -> Floats:
    q_BL = (_crumbs(b["qs"], 4, 64) | (_crumbs(b["qh"], 2, 32) << np.uint8(4))).astype(np.int8) - np.int8(32)
    scale_BG = _f32(b["d"], 2) * b["scales"].astype(np.float32)
    return scale_BG[..., None] * q_BL.reshape(-1, 16, 16).astype(np.float32)


def _decode_iq4_nl(b: Blocks) -> Floats:
    return _f32(b["d"], 2) * _IQ4_VALUES.take(_crumbs(b["qs"], 4, 16))


def _decode_iq4_xs(b: Blocks) -> Floats:
    """Eight 6-bit scales: low nibbles in order in 4 bytes, high pairs of bits in one 16-bit number."""
    low_BG = np.stack((b["sl"] & 15, b["sl"] >> 4), axis=-1).reshape(-1, 8)
    high_BG = (b["sh"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & 3
    scale_BG = _f32(b["d"], 2) * ((low_BG | (high_BG << 4)).astype(np.int8) - np.int8(32)).astype(np.float32)
    values_BGN: Floats = scale_BG[..., None] * _IQ4_VALUES.take(_crumbs(b["qs"], 4, 16)).reshape(-1, 8, 32)
    return values_BGN


def _decode_int4(b: Blocks) -> Floats:
    return _f32(b["d"], 2) * (_crumbs(b["qs"], 4, 16).astype(np.int8) - np.int8(8)).astype(np.float32)


def _decode_int8_16(b: Blocks) -> Floats:
    values_BGN: Floats = b["d"][..., None] * b["qs"].reshape(-1, 2, 16).astype(np.float32)
    return values_BGN


def _decode_codes(kind: str) -> Callable[[Blocks], Floats]:
    from puna.weights.blocks.grids import decode  # few files have such types, and their tables cost memory

    return lambda b: decode(kind, b)


def _decode_fp8(b: Blocks) -> Floats:
    return _f32(b["d"], 2) * E4M3_VALUES.take(b["qs"])


def _e4m3_values() -> Floats:
    """What each byte is in E4M3 (OCP's 8-bit floating point 1.0, "FN" in torch): no infinities, one NaN."""
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    magnitude = np.where(exponent, (8 + fraction) * 2.0 ** (exponent - 10.0), fraction * 2.0**-9)
    magnitude[(code & 127) == 127] = np.nan
    return np.where(code < 128, magnitude, -magnitude).astype(np.float32)


E4M3_VALUES = _e4m3_values()

_DECODERS: Mapping[str, Callable[[Blocks], Floats]] = {
    "F32": _decode_f16, "F16": _decode_f16, "BF16": _decode_bf16, "Q4_0": _decode_q4_0, "Q4_1": _decode_q4_1,
    "Q5_0": _decode_q5_0, "Q5_1": _decode_q5_1, "Q8_0": _decode_q8_0, "Q2_K": _decode_q2_k,
    "Q3_K": _decode_q3_k, "Q4_K": _decode_q4_k, "Q5_K": _decode_q5_k, "Q6_K": _decode_q6_k,
    "IQ4_NL": _decode_iq4_nl, "IQ4_XS": _decode_iq4_xs, "INT4": _decode_int4, "INT4_MIN": _decode_q4_1,
    "INT8": _decode_q8_0, "INT8_16": _decode_int8_16, "FP8": _decode_fp8,
}  # fmt: skip


def quantize(values: NDArray[Any], kind: str) -> Bytes:
    """`values` (finite, rows of whole blocks) as `kind` -> uint8 [n_bytes(kind, values.shape)].

    Rounds as the gguf package does: nearest, the scale from the largest magnitude (Q4_0, Q5_0, Q8_0) or from
    the range (Q4_1, Q5_1). Other formats have no encoder here: BadValue.
    """
    if kind not in _ENCODERS:
        raise BadValue(f"cannot quantize to {kind}; encoders: {', '.join(_ENCODERS)}")
    fmt, encode = FORMATS[kind], _ENCODERS[kind]
    out_B = np.empty(n_bytes(kind, values.shape) // fmt.block_bytes, fmt.layout)
    x_BL = values.reshape(-1, fmt.block_len)
    step = _CHUNK // fmt.block_len
    # A block of zeros has scale 0; one of denormals has an infinite inverse: both are taken care of below.
    with np.errstate(all="ignore"):
        for at in range(0, out_B.size, step):
            encode(x_BL[at : at + step].astype(np.float32), out_B[at : at + step])
    data: Bytes = out_B.view(np.uint8)
    return data


def _encode_float(x_BL: Floats, out_B: Blocks) -> None:
    out_B[...] = x_BL[:, 0]


def _encode_bf16(x_BL: Floats, out_B: Blocks) -> None:
    """To nearest, ties to even; an undefined number stays one."""
    bits = x_BL[:, 0].view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    out_B[...] = np.where(np.isnan(x_BL[:, 0]), (bits >> 16) | 0x40, rounded)


def _inverse(d_B1: Floats) -> Floats:
    return np.where(d_B1 == 0, np.float32(0), np.float32(1) / d_B1)


def _pack_nibbles(q_BL: Bytes) -> Bytes:
    low_BN, high_BN = q_BL[:, :16], q_BL[:, 16:]
    return (low_BN & np.uint8(15)) | (high_BN << np.uint8(4))


def _symmetric(x_BL: Floats, bits: int, out_B: Blocks) -> Bytes:
    """Quants of Q4_0 and Q5_0: the value of largest magnitude becomes the lowest quant exactly."""
    half = 1 << (bits - 1)
    largest_B1 = np.take_along_axis(x_BL, np.abs(x_BL).argmax(axis=-1, keepdims=True), axis=-1)
    d_B1 = largest_B1 / np.float32(-half)
    out_B["d"] = d_B1[:, 0]
    q_BL = (x_BL * _inverse(d_B1) + np.float32(half + 0.5)).astype(np.uint8)
    return np.minimum(q_BL, np.uint8(2 * half - 1))


def _from_range(x_BL: Floats, bits: int, out_B: Blocks) -> Bytes:
    """Quants of Q4_1 and Q5_1: the lowest value is the minimum, the highest the top quant."""
    top = (1 << bits) - 1
    min_B1 = x_BL.min(axis=-1, keepdims=True)
    d_B1 = (x_BL.max(axis=-1, keepdims=True) - min_B1) / np.float32(top)
    out_B["d"], out_B["m"] = d_B1[:, 0], min_B1[:, 0]
    q_BL = ((x_BL - min_B1) * _inverse(d_B1) + np.float32(0.5)).astype(np.uint8)
    clipped_BL: Bytes = np.minimum(q_BL, np.uint8(top))
    return clipped_BL


def _encode_q4_0(x_BL: Floats, out_B: Blocks) -> None:
    out_B["qs"] = _pack_nibbles(_symmetric(x_BL, 4, out_B))


def _encode_q4_1(x_BL: Floats, out_B: Blocks) -> None:
    out_B["qs"] = _pack_nibbles(_from_range(x_BL, 4, out_B))


def _store_five_bits(q_BL: Bytes, out_B: Blocks) -> None:
    out_B["qs"] = _pack_nibbles(q_BL)
    out_B["qh"] = np.packbits(q_BL >> np.uint8(4), axis=-1, bitorder="little")


def _encode_q5_0(x_BL: Floats, out_B: Blocks) -> None:
    _store_five_bits(_symmetric(x_BL, 5, out_B), out_B)


def _encode_q5_1(x_BL: Floats, out_B: Blocks) -> None:
    _store_five_bits(_from_range(x_BL, 5, out_B), out_B)


def _encode_q8_0(x_BL: Floats, out_B: Blocks) -> None:
    """Halves round away from zero, as C's roundf does."""
    d_B1 = np.abs(x_BL).max(axis=-1, keepdims=True) / np.float32(127)
    scaled_BL = x_BL * _inverse(d_B1)
    magnitude_BL = np.floor(np.abs(scaled_BL))
    magnitude_BL += np.floor(2 * (np.abs(scaled_BL) - magnitude_BL))
    out_B["d"] = d_B1[:, 0]
    out_B["qs"] = np.sign(scaled_BL) * magnitude_BL


_ENCODERS: Mapping[str, Callable[[Floats, Blocks], None]] = {
    "F32": _encode_float, "F16": _encode_float, "BF16": _encode_bf16, "Q8_0": _encode_q8_0,
    "Q4_0": _encode_q4_0, "Q4_1": _encode_q4_1, "Q5_0": _encode_q5_0, "Q5_1": _encode_q5_1,
}  # fmt: skip


def random_blocks(kind: str, shape: tuple[int, ...], rng: np.random.Generator, std: float = 0.02) -> Bytes:
    """A valid random tensor of any format -> uint8 [n_bytes(kind, shape)], made without a quantizer.

    Values have mean about 0 and standard deviation about `std`; every bit of quants and inner scales is
    random, block scales spread by a quarter around their mean (with either sign where the format has no
    minimum). Equal generators give equal bytes. About a second per 10^9 bytes.
    """
    size = n_bytes(kind, shape)
    if kind in _FLOAT_KINDS:
        return _random_floats(kind, size // FORMATS[kind].block_bytes, rng, std)
    blocks_B = _random_words(rng, size).view(FORMATS[kind].layout)
    _set_scales(blocks_B, kind, rng, np.float32(std / _unit_std(kind)))
    return blocks_B.view(np.uint8)


_FLOAT_KINDS = ("F32", "F16", "BF16")

# Minimum of a block in units of its scale, such that the mean of uniformly random quants is 0. Q4_1 and Q5_1
# add the minimum; the K formats subtract it.
_MIN_PER_SCALE = {"Q4_1": -7.5, "INT4_MIN": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}


def _random_words(rng: np.random.Generator, size: int) -> Bytes:
    """Raw output of the bit generator: the part of numpy's random numbers that versions do not change."""
    words: NDArray[np.uint64] = rng.bit_generator.random_raw(-(-size // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:size]


def _random_floats(kind: str, count: int, rng: np.random.Generator, std: float) -> Bytes:
    """Each one of 65,536 values that are evenly spaced over +-std * sqrt(3)."""
    values = np.linspace(-std * 3**0.5, std * 3**0.5, 1 << 16, dtype=np.float32)
    table = quantize(values, kind).view(FORMATS[kind].layout)
    out = np.empty(count, table.dtype)
    for at in range(0, count, _CHUNK):
        part = out[at : at + _CHUNK]
        table.take(_random_words(rng, 2 * part.size).view("<u2"), out=part, mode="clip")
    return out.view(np.uint8)


def _set_scales(blocks_B: Blocks, kind: str, rng: np.random.Generator, scale: np.float32) -> None:
    for at in range(0, blocks_B.size, _CHUNK):
        part = blocks_B[at : at + _CHUNK]
        unit_B = _random_words(rng, 4 * part.size).view("<i4").astype(np.float32) * np.float32(2.0**-31)
        d_B = scale * (1 + np.abs(unit_B) / 2 - np.float32(0.25))
        if kind == "FP8":
            part["qs"] ^= (part["qs"] & 127) == 127  # what would be no number
        if kind == "MXFP4":
            part["e"] = _exponents(scale, unit_B)
        elif kind == "IQ1_M":  # a nibble on top of each of four words
            nibbles = np.copysign(d_B, unit_B).astype("<f2").view("<u2")[:, None] >> np.arange(0, 16, 4)
            part["scales"] = (part["scales"] & 0xFFF) | (nibbles.astype(np.uint16) << 12)
        elif kind == "INT8_16":
            part["d"] = np.copysign(d_B, unit_B)[:, None]
        elif kind in _MIN_PER_SCALE:
            part["d"], part["m"] = d_B, d_B * np.float32(_MIN_PER_SCALE[kind])
        else:
            part["d"] = np.copysign(d_B, unit_B)


def _exponents(scale: np.float32, unit_B: Floats) -> Bytes:
    """Two neighbouring powers of two, mixed so that they scale like `scale` on average."""
    power = np.floor(np.log2(scale))
    higher = (float(scale / 2.0**power) ** 2 - 1) / 3
    exponents: Bytes = (power + 128 + (np.abs(unit_B) < higher)).astype(np.uint8)
    return exponents


@cache
def _unit_std(kind: str) -> float:
    """Standard deviation of random blocks whose scales are about 1, measured on a fixed sample."""
    rng = np.random.default_rng(0)
    shape = (1 << 19,)
    blocks_B = _random_words(rng, n_bytes(kind, shape)).view(FORMATS[kind].layout)
    _set_scales(blocks_B, kind, rng, np.float32(1))
    return float(dequantize(blocks_B.view(np.uint8), kind, shape).std())
