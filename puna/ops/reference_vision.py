"""The ops of an image encoder in plain numpy; see reference.py.

Shapes: X rows of all tiles of an image, R wanted ones, D width, Q values of a patch, F feed-forward width, H
heads, C head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import erf
from typing import Any

import numpy as np

from puna.ops.reference import Array, NumpyOps, full_attention

_erf = np.frompyfunc(erf, 1, 1)  # numpy has none; slow, and right to the last bit


class NumpyVisionOps(NumpyOps):
    """table.VisionOps over float32 arrays; one object serves one image, a model.vision.Tiles."""

    def __init__(self, tiles: Any) -> None:
        self.tiles = tiles
        self.positions_T = tiles.patch_of_X
        self._angles = {}

    def given(self, name: str) -> Array:
        rows_XD: Array = getattr(self.tiles, name)
        return rows_XD

    def layer_norm(self, x_XD: Array, w_D: Array, bias_D: Array, eps: float) -> Array:
        x = x_XD.astype(np.float64)
        x -= x.mean(axis=1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=1, keepdims=True) + eps)
        y_XD: Array = (x * w_D + bias_D).astype(np.float32)
        return y_XD

    def gelu(self, x_XF: Array) -> Array:
        share_XF = (1 + _erf(x_XF / np.sqrt(2)).astype(np.float64)) / 2
        y_XF: Array = (x_XF * share_XF).astype(np.float32)
        return y_XF

    def mask_rows(self, x_XD: Array) -> Array:
        return np.where(self.tiles.filling_X[:, None], np.float32(0), x_XD)

    def attend_tiles(self, q_XHC: Array, k_XHC: Array, v_XHC: Array, head_dim: int, scale: float) -> Array:
        o_XHC = np.empty_like(q_XHC)
        for rows in np.split(np.arange(len(q_XHC)), self.tiles.n_groups):
            padding = self.tiles.padding_X[rows]
            real = rows[~padding]
            for queries, seen in ((real, rows), (rows[padding], real)):
                o_XHC[queries] = full_attention(q_XHC[queries], k_XHC[seen], v_XHC[seen], head_dim, scale)
        return o_XHC

    def join(self, x_XD: Array, inner_XD: Sequence[Array]) -> Array:
        if not inner_XD:
            return x_XD
        return np.concatenate([x_XD, np.stack(inner_XD, axis=2).reshape(len(x_XD), -1)], axis=1)

    def gather(self, x_XD: Array) -> Array:
        wanted_RS = self.tiles.wanted_RS
        y_RSD: Array = x_XD[wanted_RS].reshape(len(wanted_RS), -1)
        return y_RSD
