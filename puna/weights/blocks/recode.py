"""Block formats without a kernel of their own as codes with float scales, number for number.

GGUF's types below four bits have too many layouts for a kernel each. Each of their values is an integer
times a float32 scale (grids.py), so they become INT8, or INT8_16 where 16 values share a scale: four to five
times the bytes of the smallest, and not one value changes. What formats.py lists otherwise stays as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.weights.blocks.formats import FORMATS

_RECODED = {
    "IQ2_XXS": "INT8", "IQ2_XS": "INT8_16", "IQ2_S": "INT8_16", "IQ3_XXS": "INT8", "IQ3_S": "INT8",
    "IQ1_S": "INT8", "IQ1_M": "INT8_16", "TQ1_0": "INT8", "TQ2_0": "INT8", "MXFP4": "INT8",
}  # fmt: skip
_CHUNK = 1 << 18  # values made at a time


def kernel_kind(kind: str) -> str:
    """The format in which kernels take a tensor of `kind`."""
    return _RECODED.get(kind, kind)


def recode(data: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """A whole tensor of `kind`, uint8 [n_bytes], as kernel_kind(kind); itself where that is its kind."""
    if kind not in _RECODED:
        return data
    from puna.weights.blocks.grids import codes  # few files have such types, and their tables cost memory

    fmt, made = FORMATS[kind], FORMATS[_RECODED[kind]]
    blocks_B = data.view(fmt.layout)
    out = np.empty(blocks_B.size * (fmt.block_len // made.block_len), made.layout)
    n_scales = 2 if made.name == "INT8_16" else 1
    step = _CHUNK // fmt.block_len
    with np.errstate(all="ignore"):  # scales of a damaged file
        for at in range(0, blocks_B.size, step):
            q_BL, d_BG = codes(kind, blocks_B[at : at + step])
            ratio = q_BL.shape[1] // made.block_len
            part = out[at * ratio : (at + len(q_BL)) * ratio]
            part["qs"] = q_BL.reshape(-1, made.block_len)
            repeats = ratio * n_scales // d_BG.shape[1]
            part["d"] = np.repeat(d_BG, repeats, axis=-1).reshape(part["d"].shape)
    return out.view(np.uint8)
