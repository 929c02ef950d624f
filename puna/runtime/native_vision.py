"""Images on the native executor: encoders over the compiled ops of csrc/image_ops.h, one picture at a time.

An encoder runs once per picture over thousands of rows, so that its ops are called one by one: between two of
them Python costs nothing that shows. Keys and values of cross-attention are kept in the type of the cache,
in tiles that the attention kernels read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna import _native
from puna.core import Batch, Image
from puna.model.block import Weights
from puna.model.config import ModelConfig
from puna.model.names import assemble
from puna.model.rope import RopeTable
from puna.model.vision import cross_keys
from puna.ops.images import StepImages
from puna.ops.reference_vision import NumpyVisionOps
from puna.runtime.images import Encoded, ImageStore
from puna.weights.blocks.formats import n_bytes
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor

Array = NDArray[np.float32]

_TABLES = ("gated_positional_embedding", "pre_tile_pos_embed", "post_tile_pos_embed")  # a row for each grid
_MATRICES = ("conv1", "wq", "wk", "wv", "wo", "c_fc", "c_proj", "vision_projection")


class GridTable:
    """A table of which a picture needs one row; the others stay as the file has them."""

    def __init__(self, tensor: RawTensor) -> None:
        self._kind, self._cols = tensor.kind, tensor.shape[1]
        self._rows = tensor.data().reshape(tensor.shape[0], n_bytes(tensor.kind, (1, self._cols))).copy()

    def __getitem__(self, row: int) -> Array:
        return dequantize(self._rows[row], self._kind, (self._cols,))


def matrix_names(cfg: ModelConfig, tensors: Iterable[str]) -> list[str]:
    """What is multiplied to encode a picture, in the order of use."""
    names = [name for name in tensors if name.startswith("vision") and name.split(".")[-1] in _MATRICES]
    for i in range(len(cfg.cross_attention)):
        names += [f"cross_attention_layers.{i}.{part}" for part in ("wk", "wv")]
    return names


def encoder_weights(
    cfg: ModelConfig, tensors: Mapping[str, RawTensor], packed: Mapping[str, Any], rope: RopeTable
) -> Weights:
    """The weights of the encoder and of cross-attention; what only the decoder reads is left out."""
    found: dict[str, Any] = dict.fromkeys(tensors)
    for name, tensor in tensors.items():
        part = name.split(".")[-1]
        if name in packed:
            found[name] = packed[name]
        elif part in _TABLES:
            found[name] = GridTable(tensor)
        elif name.startswith("vision") or part == "k_norm":
            found[name] = dequantize(tensor.data(), tensor.kind, tensor.shape)
        else:
            continue
        tensor.release()
    return assemble(cfg, found, rope)


class NativeVisionOps(NumpyVisionOps):
    """table.VisionOps: what takes time is compiled, the rest is numpy's."""

    def __init__(self, tiles: Any, ops: Any) -> None:
        super().__init__(tiles)
        self._ops = ops

    def linear(self, x_XD: Array, w_ED: Any, bias_E: Any = None) -> Array:
        n_out = w_ED.rows
        bias = np.zeros(0, np.float32)
        if bias_E is not None:
            bias = np.pad(bias_E, (0, -n_out % 16))
        y_XE: Array = self._ops.linear(w_ED, np.ascontiguousarray(x_XD), bias)
        return np.ascontiguousarray(y_XE[:, :n_out])

    def add(self, a_XD: Array, b_XD: Array, gate_1: Any = None) -> Array:
        factor = 1.0 if gate_1 is None else float(np.tanh(gate_1[0]))
        y_XD: Array = self._ops.add(a_XD, b_XD, factor)
        return y_XD

    def rope(self, x_XHC: Array, n_heads: int, freqs_C2: Any) -> Array:
        if id(freqs_C2) not in self._angles:
            self._angles[id(freqs_C2)] = freqs_C2.angles(self.positions_T)
        y_XHC: Array = self._ops.rope(x_XHC, n_heads, *self._angles[id(freqs_C2)])
        return y_XHC

    def layer_norm(self, x_XD: Array, w_D: Array, bias_D: Array, eps: float) -> Array:
        y_XD: Array = self._ops.layer_norm(x_XD, w_D, bias_D, eps)
        return y_XD

    def gelu(self, x_XF: Array) -> Array:
        y_XF: Array = self._ops.gelu(x_XF)
        return y_XF

    def attend_tiles(self, q_XHC: Array, k_XHC: Array, v_XHC: Array, head_dim: int, scale: float) -> Array:
        groups = self.tiles.padding_X.reshape(self.tiles.n_groups, -1)
        order = np.argsort(groups, axis=1, kind="stable")  # the real rows of each group first
        order += np.arange(len(groups))[:, None] * groups.shape[1]
        n_real, n_heads = int((~groups[0]).sum()), q_XHC.shape[1] // head_dim
        o_XHC: Array = self._ops.attend(
            q_XHC, k_XHC, v_XHC, order.ravel().astype(np.int32), len(groups), n_real, n_heads, scale
        )
        return o_XHC


class NativeImages:
    """Encodes the pictures of steps, keeps them, and says what a step's tokens have to do with them."""

    def __init__(self, cfg: ModelConfig, plan: _native.Plan, weights: Weights, max_bytes: int) -> None:
        self._weights = weights
        self._ops: Any = _native.ImageOps(plan)
        self._store = ImageStore(cfg, self._encode, max_bytes)

    @property
    def n_bytes(self) -> int:
        return self._store.n_bytes

    def n_positions(self, image: Image) -> int:
        return self._store.n_positions(image)

    def of(self, batch: Batch) -> tuple[StepImages, list[Any], list[Any]]:
        """What Plan.step calls `given` and `seen`, and before them what they point into: to be kept."""
        images = self._store.of(batch)
        given = [
            (part.rows_N.astype(np.int32), part.image_ID, part.parts_N.astype(np.int32))
            for part in images.fused
        ]
        seen = [(part.rows.start, part.rows.stop, list(part.images)) for part in images.seen]
        return images, given, seen

    def _encode(self, image: Image) -> Encoded:
        return self._store.encode(
            image, self._weights, lambda tiles: NativeVisionOps(tiles, self._ops), np.asarray, self._keep
        )

    def _keep(self, ops: Any, cfg: ModelConfig, layers: Sequence[Any], y_ID: Array) -> tuple[Any, int]:
        """Layer by layer: together they would take twice the memory in floats."""
        keys = self._ops.keys(len(layers), len(y_ID))
        for i, layer in enumerate(layers):
            ((k, v),) = cross_keys(ops, cfg, [layer], y_ID)
            self._ops.fill(keys, i, k, v)
        return keys, keys.nbytes
