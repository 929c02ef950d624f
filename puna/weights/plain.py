"""A checkpoint as other formats know it: without adapters, and without a Hadamard transform before w2.

Both are part of some matrices then: (w + up down) and w2 H, computed in float32, so that nothing of their
block format remains. Executors run neither this way: it is for conversion.

Shapes: O outputs, I inputs, R rows, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from puna.model.names import ADAPTED, adapter_names
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.load import Checkpoint

_ROWS = 256  # of w2 transformed at a time


def is_plain(checkpoint: Checkpoint) -> bool:
    return not checkpoint.config.lora_rank and not checkpoint.config.ffn_hadamard


def plain(checkpoint: Checkpoint) -> Checkpoint:
    """The same model over matrices alone; itself where it is that already.

    Matrices that change are F32, made when they are asked for.
    """
    if is_plain(checkpoint):
        return checkpoint
    cfg, stored = checkpoint.config, checkpoint.tensors
    tensors: dict[str, RawTensor] = {}
    for name, tensor in stored.items():
        part = name.rpartition(".")[2]
        if part.endswith(("_down", "_up")) and name.startswith("layers."):
            continue
        if name.startswith("layers.") and part in ADAPTED:
            tensor = _merged(tensor, stored) if cfg.lora_rank else tensor
            tensor = _rotated(tensor) if cfg.ffn_hadamard and part == "w2" else tensor
        tensors[name] = tensor
    return replace(checkpoint, config=replace(cfg, lora_rank=0, ffn_hadamard=False), tensors=tensors)


def _merged(tensor: RawTensor, stored: Mapping[str, RawTensor]) -> RawTensor:
    down, up = (stored[name] for name in adapter_names(tensor.name))

    def read() -> NDArray[np.uint8]:
        values_OI = _values(tensor)
        with np.errstate(all="ignore"):  # numbers of a damaged file
            return quantize(values_OI + _values(up) @ _values(down), "F32")

    return replace(tensor, kind="F32", data=read)


def _rotated(tensor: RawTensor) -> RawTensor:
    return replace(tensor, kind="F32", data=partial(_times_hadamard, tensor))


def _times_hadamard(tensor: RawTensor) -> NDArray[np.uint8]:
    """w2 H: its rows transformed, as H is symmetric."""
    values_RF = _values(tensor)
    width = values_RF.shape[1]
    for at in range(0, len(values_RF), _ROWS):
        y_RF = values_RF[at : at + _ROWS].astype(np.float64)
        h = 1
        while h < width:
            pairs = y_RF.reshape(len(y_RF), -1, 2, h)
            y_RF = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2)
            h *= 2
        values_RF[at : at + _ROWS] = y_RF.reshape(-1, width) / np.sqrt(width)
    return quantize(values_RF, "F32")


def _values(tensor: RawTensor) -> NDArray[np.float32]:
    return dequantize(tensor.data(), tensor.kind, tensor.shape)
