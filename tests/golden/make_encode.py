"""Makes tests/golden/encode.json: how well llama.cpp's quantizers approximate seeded rows.

Needs llama-cpp-python:

    PYTHONPATH=.:tests python tests/golden/make_encode.py

For each format and each kind of rows (`golden.rows`), the root mean square error of ggml_quantize_chunk's
result, without importances, and the weighted one with those of `golden.rows.importances`.
"""

from __future__ import annotations

import ctypes
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from golden.rows import DISTRIBUTIONS, KINDS, importances, rows, weighted_rmse
from llama_cpp import _ggml

from puna.weights.blocks.formats import FORMATS, n_bytes
from puna.weights.blocks.quant import dequantize

_quantize = _ggml.libggml.ggml_quantize_chunk
_quantize.restype = ctypes.c_size_t
_quantize.argtypes = (
    [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
)


def quantized(x: np.ndarray, kind: str, weights: np.ndarray | None) -> np.ndarray:
    out = np.empty(n_bytes(kind, x.shape), np.uint8)
    imatrix = None if weights is None else weights.ctypes.data
    _quantize(FORMATS[kind].type_id, x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], imatrix)
    return dequantize(out, kind, x.shape)


def main() -> None:
    found = {"version": version("llama_cpp_python"), "rmse": {}, "weighted_rmse": {}}
    for kind in KINDS:
        for name in DISTRIBUTIONS:
            x, w = rows(name), importances()
            found["rmse"][f"{kind} {name}"] = weighted_rmse(x, quantized(x, kind, None), None)
            found["weighted_rmse"][f"{kind} {name}"] = weighted_rmse(x, quantized(x, kind, w), w)
    path = Path(__file__).parent / "encode.json"
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
