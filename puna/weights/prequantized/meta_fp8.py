"""Meta's own files of 8-bit floats: `fp8_scales_N.pt` beside `consolidated.NN.pth` (Llama 3.1 405B, Llama 4).

Rows of a feed-forward matrix have a scale each, in every file for its part of the inputs. Llama 3's scales
are `LAYER_feed_forward.w1_FILE`; Llama 4's are `layers.LAYER.feed_forward.experts.w1`, [E, rows], and its
experts lie transposed in one matrix (llama-models, llama4/scripts/quantize.py and both loaders). First and
last layers are not quantized. That activations are rounded too is left out.

Shapes: O outputs, I inputs, E experts, D dim, F part of the feed-forward width in this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.prequantized import packed

_DENSE = re.compile(r"layers\.(\d{1,9})\.feed_forward\.(w[123])\.weight")
_EXPERTS = re.compile(r"(layers\.\d{1,9}\.feed_forward\.experts\.)moe_w_(in|out|swiglu)_e[DF]_[DF]")
_OURS = {"in": "w1", "out": "w2", "swiglu": "w3"}


def join_meta_fp8(
    stored: Mapping[str, RawTensor], scales: Mapping[str, RawTensor], file: int
) -> dict[str, RawTensor]:
    """The tensors of one file with each of kind F8_E4M3 as an FP8 matrix of rows of outputs.

    Experts become `PREFIX.w1.weight` and so on, [E * O, I]. Raises BadFile where scales are missing or do not
    fit, Unsupported for 8-bit floats elsewhere.
    """
    tensors: dict[str, RawTensor] = {}
    for name, tensor in stored.items():
        if tensor.kind != "F8_E4M3":
            tensors[name] = tensor
        elif dense := _DENSE.fullmatch(name):
            scale = _scale(f"{dense[1]}_feed_forward.{dense[2]}_{file}", scales, name, file)
            if len(tensor.shape) != 2 or scale.shape not in ((tensor.shape[0],), (tensor.shape[0], 1)):
                raise _misfit(tensor, scale)
            tensors[name] = _made(name, tensor, scale, tensor.shape)
        elif experts := _EXPERTS.fullmatch(name):
            part = f"{experts[1]}{_OURS[experts[2]]}"
            scale = _scale(part, scales, name, file)
            tensors[f"{part}.weight"] = _experts(f"{part}.weight", tensor, scale)
        else:
            raise Unsupported(
                f"tensor {name!r} holds 8-bit floats, and Meta's files have them in feed-forward matrices; "
                "use another release"
            )
    return tensors


def _scale(key: str, scales: Mapping[str, RawTensor], name: str, file: int) -> RawTensor:
    if key not in scales:
        raise BadFile(
            f"tensor {name!r} of file {file:02d} holds 8-bit floats, whose scales {key!r} are not in "
            f"fp8_scales_{file}.pt; get that file of the release too"
        )
    if scales[key].kind not in ("F32", "F16", "BF16"):
        raise BadFile(f"the scales {key!r} must be floats, found {scales[key].kind}; download them again")
    return scales[key]


def _misfit(tensor: RawTensor, scale: RawTensor) -> BadFile:
    return BadFile(
        f"the scales {scale.name!r} of shape {scale.shape} do not fit {tensor.name!r} of shape "
        f"{tensor.shape}; bring weights and scales of one release together again"
    )


def _experts(name: str, tensor: RawTensor, scale: RawTensor) -> RawTensor:
    """[E * I, O], as files have the experts, -> rows of outputs, one expert after the other, [E * O, I]."""
    shape = tensor.shape
    if len(scale.shape) != 2 or len(shape) != 2 or 0 in (*scale.shape, *shape):
        raise _misfit(tensor, scale)
    n_experts, n_out = scale.shape
    if shape[1] != n_out or shape[0] % n_experts:
        raise _misfit(tensor, scale)
    return _made(name, tensor, scale, (n_experts * n_out, shape[0] // n_experts), n_experts)


def _made(
    name: str, tensor: RawTensor, scale: RawTensor, shape: tuple[int, ...], n_transposed: int = 0
) -> RawTensor:
    kind = packed.fp8_kind(shape[1], shape[1])

    def release() -> None:
        tensor.release()
        scale.release()

    read = partial(_blocks, tensor, scale, shape, n_transposed, kind)
    return RawTensor(name, kind, shape, read, release)


def _blocks(
    tensor: RawTensor, scale: RawTensor, shape: tuple[int, ...], n_transposed: int, kind: str
) -> NDArray[np.uint8]:
    codes = tensor.data()
    if n_transposed:
        codes = codes.reshape(n_transposed, shape[1], -1).swapaxes(1, 2)
    codes_OI = codes.reshape(shape)
    packed.refuse_nan(tensor.name, codes_OI)
    scales_O1 = dequantize(scale.data(), scale.kind, (shape[0], 1))
    return packed.fp8_blocks(codes_OI, scales_O1, shape[1], kind)
