"""Models from checkpoints of every format, and back: what training begins with and what it leaves.

The way out is weights/convert.py over a checkpoint whose tensors are the trained ones, so that every format
that Puna writes can be written.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.model.names import check_shapes
from puna.train.model.module import Llama
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.load import Checkpoint

_TABLES = ("rope_factors", "rope_factors_short", "rope_factors_long")  # of rotation: nothing that is learnt


@torch.no_grad()
def read_model(checkpoint: Checkpoint) -> Llama:
    """The model of a checkpoint, as floats. Quantized weights are what their blocks say.

    Raises Unsupported for what is not trained here, BadFile where tensors lack.
    """
    model = Llama(checkpoint.config)
    check_shapes(checkpoint.config, {name: raw.shape for name, raw in checkpoint.tensors.items()})
    for name, parameter in model.tensors():
        raw = checkpoint.tensors[name]
        values = dequantize(raw.data(), raw.kind, raw.shape)
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
        raw.release()
    return model


def with_model(checkpoint: Checkpoint, model: Llama) -> Checkpoint:
    """The checkpoint with the weights of a model, float32: weights/targets.py rounds them as is wanted.

    For one process that has all of the model.
    """
    tensors = {name: raw for name, raw in checkpoint.tensors.items() if name in _TABLES}
    for name, parameter in model.tensors():
        tensors[name] = RawTensor(name, "F32", tuple(parameter.shape), partial(_bytes, parameter))
    return replace(checkpoint, tensors=tensors, quantization="")


def _bytes(parameter: Tensor) -> NDArray[np.uint8]:
    values: NDArray[np.float32] = parameter.detach().cpu().float().contiguous().numpy()
    return values.view(np.uint8).reshape(-1)
