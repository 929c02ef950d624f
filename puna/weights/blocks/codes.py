"""Block formats taken apart: the whole numbers of every weight, and the scales that they are multiplied with.

For executors that keep quantized weights in another layout than the file's and must not change a number:

    value = scale * (code - zero) + minimum

in float32, with a scale and a minimum for every `group` neighbours; where `outer` has columns, scale and
minimum are themselves whole numbers times the first and the second column of their block. Layouts are in
formats.py, meanings in quant.py.

Shapes: B blocks of the tensor, L values of a block, G groups of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.weights.blocks.formats import FORMATS
from puna.weights.blocks.quant import _IQ4_VALUES, _crumbs, _high_bit, _scales_mins_q4_k, _scales_q3_k

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Codes:
    """A tensor apart. `codes_BL` are uint8 below 16 where `bits` is 4, else int8."""

    bits: int
    codes_BL: Numbers
    zero: int
    scale_BG: Numbers  # float16 or float32; int8 or uint8 where there are outer scales
    minimum_BG: Numbers | None = None  # float16, float32 or uint8; None: 0
    outer_B2: Numbers | None = None  # float16: of scales, of minimums

    @property
    def group(self) -> int:
        """Neighbouring values that share a scale."""
        return int(self.codes_BL.shape[1] // self.scale_BG.shape[1])


def has_codes(kind: str) -> bool:
    return kind in _SPLITTERS


def code_bits(kind: str) -> int:
    """Of the codes of a kind that `has_codes`."""
    return 4 if kind in ("Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "INT4", "INT4_MIN") else 8


def split_codes(data: NDArray[np.uint8], kind: str) -> Codes:
    """The codes of a whole tensor of a kind that `has_codes`; `data` as for quant.dequantize."""
    return _SPLITTERS[kind](data.reshape(-1).view(FORMATS[kind].layout))


def _column(x_B: Numbers) -> Numbers:
    return np.ascontiguousarray(x_B)[:, None]


def _outer(b: Numbers, sign_of_minimum: float = -1.0) -> Numbers:
    """The K formats subtract their minimums."""
    return np.stack((b["d"], b["m"] * np.float16(sign_of_minimum)), axis=-1)


def _alone(b: Numbers) -> Numbers:
    return np.stack((b["d"], np.zeros_like(b["d"])), axis=-1)


def _signed(x: Numbers, zero: int) -> Numbers:
    return (x.astype(np.int16) - zero).astype(np.int8)


def _q4_0(b: Numbers) -> Codes:
    return Codes(4, _crumbs(b["qs"], 4, 16), 8, _column(b["d"]))


def _q4_1(b: Numbers) -> Codes:
    return Codes(4, _crumbs(b["qs"], 4, 16), 0, _column(b["d"]), _column(b["m"]))


def _q5_0(b: Numbers) -> Codes:
    codes = _crumbs(b["qs"], 4, 16) | _high_bit(b["qh"])
    return Codes(8, _signed(codes, 16), 0, _column(b["d"]))


def _q5_1(b: Numbers) -> Codes:
    codes = _crumbs(b["qs"], 4, 16) | _high_bit(b["qh"])
    return Codes(8, codes.view(np.int8), 0, _column(b["d"]), _column(b["m"]))


def _q8_0(b: Numbers) -> Codes:
    return Codes(8, np.ascontiguousarray(b["qs"]), 0, _column(b["d"]))


def _q2_k(b: Numbers) -> Codes:
    scales, minimums = b["scales"] & np.uint8(15), b["scales"] >> np.uint8(4)
    return Codes(4, _crumbs(b["qs"], 2, 32), 0, scales, minimums, _outer(b))


def _q3_k(b: Numbers) -> Codes:
    high = _crumbs(b["qh"], 1, 32) << np.uint8(2)
    scales = _signed(_scales_q3_k(b["scales"]), 32)
    return Codes(4, _crumbs(b["qs"], 2, 32) | high, 4, scales, None, _alone(b))


def _scales_k(b: Numbers) -> tuple[Numbers, Numbers]:
    scales, minimums = _scales_mins_q4_k(b["scales"])
    return scales.astype(np.uint8), minimums.astype(np.uint8)


def _q4_k(b: Numbers) -> Codes:
    return Codes(4, _crumbs(b["qs"], 4, 32), 0, *_scales_k(b), _outer(b))


def _q5_k(b: Numbers) -> Codes:
    codes = _crumbs(b["qs"], 4, 32) | (_crumbs(b["qh"], 1, 32) << np.uint8(4))
    return Codes(8, codes.view(np.int8), 0, *_scales_k(b), _outer(b))


def _q6_k(b: Numbers) -> Codes:
    codes = _crumbs(b["qs"], 4, 64) | (_crumbs(b["qh"], 2, 32) << np.uint8(4))
    return Codes(8, _signed(codes, 32), 0, np.ascontiguousarray(b["scales"]), None, _alone(b))


def _iq4(b: Numbers) -> Numbers:
    """Four bits choose one of sixteen whole numbers, which are not evenly spaced: eight bits here."""
    return _IQ4_VALUES.take(_crumbs(b["qs"], 4, 16)).astype(np.int8)


def _iq4_nl(b: Numbers) -> Codes:
    return Codes(8, _iq4(b), 0, _column(b["d"]))


def _iq4_xs(b: Numbers) -> Codes:
    low_BG = np.stack((b["sl"] & 15, b["sl"] >> 4), axis=-1).reshape(-1, 8)
    high_BG = (b["sh"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & 3
    return Codes(8, _iq4(b), 0, _signed(low_BG | (high_BG << 4), 32), None, _alone(b))


def _int8_16(b: Numbers) -> Codes:
    return Codes(8, np.ascontiguousarray(b["qs"]), 0, np.ascontiguousarray(b["d"]))


# INT4, INT4_MIN and INT8 are Q4_0, Q4_1 and Q8_0 with wider scales.
_SPLITTERS: Mapping[str, Callable[[Numbers], Codes]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
    "INT4": _q4_0, "INT4_MIN": _q4_1, "INT8": _q8_0, "INT8_16": _int8_16,
}  # fmt: skip
