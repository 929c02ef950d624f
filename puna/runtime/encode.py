"""Quantizing float rows by the compiled core: the bridge to csrc/ops/encode.cpp."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna import _native
from puna.weights.formats import FORMATS

_NONE = np.empty(0, np.float32)


def encode(
    x_RX: NDArray[np.float32], kind: str, importance_X: NDArray[np.float32] | None, threads: int, target: str = ""
) -> NDArray[np.uint8]:
    """Finite rows of whole blocks of `kind` -> the bytes of a GGUF tensor.

    Makes the squared error small, with columns weighted by `importance_X`; the bytes do not depend on the
    threads or the CPU `target`.
    """
    assert x_RX.shape[1] % FORMATS[kind].block_len == 0, (x_RX.shape, kind)
    importance = _NONE if importance_X is None else np.ascontiguousarray(importance_X, np.float32)
    data: NDArray[np.uint8] = _native.encode(kind, np.ascontiguousarray(x_RX), importance, threads, target)
    return data
