"""Meta's int4 releases of Llama 3.2 (SpinQuant, QLoRA): their tensors as single ones, number for number.

A matrix of a layer is `NAME.weight`, int8 that holds -8 to 7, with `NAME.scales` for groups of inputs, and
sometimes `NAME.zeros`, all zero; the table and the output have 8 bits and a scale for every row
(llama-models, llama3/quantization/loader.py). They become INT4 and INT8. An adapter
`NAME.adaptor.{A,B}.weight` stays beside its matrix and is applied at run time, as there: merged, the matrix
would be more than three times as large. Its factor becomes part of B. That Meta rounds activations to int8 is
left out: Puna rounds those in its own way.

Shapes: O outputs, I inputs, G groups of inputs, A rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import frexp

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.prequantized import packed
from puna.weights.prequantized.meta_config import MetaQuantization

_FLOATS = ("F32", "F16", "BF16")
_WIDE = ("tok_embeddings", "output")  # in 8 bits
_PARTS = (".scales", ".zeros")


def join_meta_int4(found: MetaQuantization, stored: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """The tensors of a release with each quantized matrix as one, `NAME.weight`, where its first part was.

    `stored` may hold the kind I8. Raises BadFile where parts of a matrix are missing or do not fit.
    """
    stored = {name: _squeezed(tensor) for name, tensor in stored.items()}
    tensors: dict[str, RawTensor] = {}
    for name, tensor in stored.items():
        module = name.removesuffix(".weight")
        if name.endswith(_PARTS):
            owner = stored.get(f"{name.rpartition('.')[0]}.weight")
            if owner is None or owner.kind != "I8":
                raise BadFile(
                    f"{name!r} stands without the int8 matrix that it belongs to; download the release again"
                )
        elif tensor.kind == "I8":
            tensors[name] = _matrix(found, module, tensor, stored)
        elif name.endswith(".adaptor.B.weight"):
            tensors[name] = _scaled(tensor, found.lora_scale)
        else:
            tensors[name] = tensor
    return tensors


def _squeezed(tensor: RawTensor) -> RawTensor:
    """Without axes of length 1, which releases have in places (executorch, pre_quantization.py)."""
    return replace(tensor, shape=tuple(n for n in tensor.shape if n != 1))


def _matrix(
    found: MetaQuantization, module: str, weight: RawTensor, stored: Mapping[str, RawTensor]
) -> RawTensor:
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise BadFile(f"{weight.name!r} must be a matrix, found shape {weight.shape}; download it again")
    n_out, n_in = weight.shape
    bits, size = (8, n_in) if module in _WIDE else (4, found.group_size)
    scales = stored.get(f"{module}.scales")
    shape = (n_out,) if size == n_in else (n_out, -(-n_in // size))
    if scales is None or scales.shape != shape or scales.kind not in _FLOATS or n_in % size:
        state = "none" if scales is None else f"{scales.kind} of shape {scales.shape}"
        raise BadFile(
            f"the int8 matrix {weight.name!r} of shape {weight.shape} needs '{module}.scales' of shape "
            f"{shape}, for groups of {size} inputs, found {state}; download weights and params.json again"
        )
    zeros = stored.get(f"{module}.zeros")
    if zeros is not None and (zeros.kind not in _FLOATS or zeros.data().any()):
        raise Unsupported(f"'{module}.zeros' are not zero, and Meta's int4 is symmetric; use another release")
    kind = packed.int_kind(bits, True, "F32", n_in, size, False)

    def release() -> None:
        for part in (weight, scales, zeros):
            if part is not None:
                part.release()

    return RawTensor(
        weight.name, kind, weight.shape, partial(_blocks, weight, scales, bits, size, kind), release
    )


def _blocks(weight: RawTensor, scales: RawTensor, bits: int, size: int, kind: str) -> NDArray[np.uint8]:
    middle = 1 << (bits - 1)
    codes_OI = weight.data().view(np.int8).reshape(weight.shape)
    if bits == 4 and not -8 <= int(codes_OI.min()) <= int(codes_OI.max()) <= 7:
        raise BadFile(
            f"{weight.name!r} must hold numbers of 4 bits, -8 to 7, found {codes_OI.min()} to "
            f"{codes_OI.max()}; download the release again"
        )
    scales_OG = dequantize(scales.data(), scales.kind, scales.shape).reshape(len(codes_OI), -1)
    zeros_OG = np.full(scales_OG.shape, middle, np.int16)
    codes = codes_OI.view(np.uint8) + np.uint8(
        middle
    )  # wraps around: from -middle..middle-1 to 0..2 middle-1
    return packed.blocks(packed.IntMatrix(codes, zeros_OG, scales_OG, size), kind)


def _scaled(tensor: RawTensor, factor: float) -> RawTensor:
    """`factor` times the tensor, in its own kind where it is a power of two, which rounds nothing."""
    if tensor.kind not in _FLOATS:
        raise BadFile(f"{tensor.name!r} must hold floats, found {tensor.kind}; download the release again")
    if factor == 1.0:
        return tensor
    kind = tensor.kind if abs(frexp(factor)[0]) == 0.5 else "F32"
    return replace(tensor, kind=kind, data=partial(_times, tensor, factor, kind))


def _times(tensor: RawTensor, factor: float, kind: str) -> NDArray[np.uint8]:
    values = dequantize(tensor.data(), tensor.kind, tensor.shape)
    with np.errstate(all="ignore"):
        return quantize(values * np.float32(factor), kind)
