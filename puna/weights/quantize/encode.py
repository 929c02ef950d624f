"""Tensors as block formats: the compiled quantizers (csrc/ops/encode.cpp) over tensors of any size.

Shapes: R rows, X row length, E experts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from puna import _native
from puna.core import BadFile
from puna.weights.blocks.formats import n_bytes
from puna.weights.blocks.quant import Bytes, Floats, dequantize, quantize
from puna.weights.blocks.tensor import RawTensor

ENCODED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")

_CHUNK = 1 << 24  # values worked on at a time
_LEAST_IMPORTANCE = 1e-4  # in proportion to the mean
_NOTHING = np.empty(0, np.float32)


def encode(values_RX: Floats, kind: str, importance_X: Floats | None = None, threads: int = 1) -> Bytes:
    """Rows (finite) as `kind`, one of ENCODED -> uint8 [n_bytes(kind, values_RX.shape)].

    `importance_X` weighs the squared error of each column: the mean square of the activations that the matrix
    is multiplied with makes the error of the product small. Equal arguments give equal bytes everywhere.
    """
    weights_X = _NOTHING if importance_X is None else relative(importance_X)
    found: Bytes = _native.encode(kind, np.ascontiguousarray(values_RX, np.float32), weights_X, threads)
    return found


def relative(importance_X: Floats) -> Floats:
    """Importances in proportion to their mean, so that products of them are float32 whatever their unit.

    What a text never used keeps a little: another text may use it.
    """
    wide_X = np.asarray(importance_X, np.float64)
    mean = float(wide_X.mean())
    if mean <= 0:
        return np.ones(len(wide_X), np.float32)
    return np.ascontiguousarray(np.maximum(wide_X / mean, _LEAST_IMPORTANCE), np.float32)


def encoded(tensor: RawTensor, kind: str, importance: Floats | None = None, threads: int = 1) -> RawTensor:
    """The tensor as `kind`, made when asked for, some rows at a time; itself where it is that already.

    `importance` is [X], or [E, X] for the experts of a tensor [E, R, X].
    """
    if tensor.kind == kind:
        return tensor
    return replace(tensor, kind=kind, data=partial(_encode_tensor, tensor, kind, importance, threads))


def _encode_tensor(tensor: RawTensor, kind: str, importance: Floats | None, threads: int) -> Bytes:
    width = tensor.shape[-1]
    experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
    n_rows = int(np.prod(tensor.shape[:-1])) // experts
    data, out = tensor.data(), np.empty(n_bytes(kind, tensor.shape), np.uint8)
    row_in, row_out = n_bytes(tensor.kind, (width,)), n_bytes(kind, (width,))
    step = max(1, _CHUNK // width)
    for expert in range(experts):
        weights_X = importance[expert] if importance is not None and importance.ndim == 2 else importance
        for at in range(expert * n_rows, (expert + 1) * n_rows, step):
            end = min((expert + 1) * n_rows, at + step)
            values_RX = dequantize(data[at * row_in : end * row_in], tensor.kind, (end - at, width))
            _check_finite(tensor.name, values_RX)
            made = (
                encode(values_RX, kind, weights_X, threads) if kind in ENCODED else quantize(values_RX, kind)
            )
            out[at * row_out : end * row_out] = made
    return out


def _check_finite(name: str, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise BadFile(
            f"tensor {name!r} holds values that are infinite or not a number (NaN); the checkpoint is "
            "damaged, get it again"
        )
