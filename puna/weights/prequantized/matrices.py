"""Releases in Hugging Face's layout that are quantized by others (config.py): their tensors.

The several tensors of such a matrix become one RawTensor of a format of formats.CODED with the
very numbers of the release (packed.py), made when its data() is called; experts.py puts those of experts
together. What is said of activations and
caches is left out: Puna rounds those in its own way.

Shapes: O outputs, I inputs, G groups of inputs, P inputs or outputs of a 32-bit word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.prequantized import experts, packed
from puna.weights.prequantized.config import Quantization
from puna.weights.prequantized.nf4 import join_nf4

DTYPES = ("I32", "I64", "I8", "U8", "F8_E4M3")  # of tensors that a matrix is put together from
_SCALES = ("F16", "BF16", "F32")
_NUMPY = {"I32": "<i4", "I64": "<i8", "I8": "<i1", "F8_E4M3": "<u1"}
# About activations and the cache, or found out from shapes.
_LEFT_OUT = (
    "input_scale", "input_scale_ub", "input_zero_point", "input_global_scale", "output_scale",
    "output_zero_point", "k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point",
)  # fmt: skip

Parts = Mapping[str, RawTensor]  # of one matrix, by the last part of their names


def put_together(found: Quantization, stored: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """The tensors of a release with each quantized matrix as one, `NAME.weight`, where its first part was.

    `stored` may hold dtypes of DTYPES as kinds. Small tensors are read: shapes, orders of groups, biases.
    Raises BadFile where parts of a matrix are missing or do not fit, Unsupported for what is not read.
    """
    if found.method == "bitsandbytes":
        return join_nf4(stored)
    modules: dict[str, dict[str, RawTensor]] = {}
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    tensors: dict[str, RawTensor] = {}
    for module, parts in modules.items():
        for part in _LEFT_OUT:
            parts.pop(part, None)
        tensors |= {f"{module}.{part}" if module else part: t for part, t in _module(found, module, parts)}
    return experts.stack_experts(tensors)


def _module(found: Quantization, module: str, parts: dict[str, RawTensor]) -> list[tuple[str, RawTensor]]:
    weight = parts.get("weight")
    if "qweight" in parts and found.method in ("awq", "gptq"):
        matrix = (_awq if found.method == "awq" else _gptq)(found, module, parts)
    elif "weight_packed" in parts and found.method == "compressed-tensors":
        matrix = _compressed(module, parts)
    elif weight is not None and weight.kind == "F8_E4M3":
        matrix = _fp8(found, module, parts)
    elif weight is not None and weight.kind == "I8" and "weight_scale" in parts:
        matrix = _int8(module, parts)
    elif experts.is_fused(parts):
        return list(experts.split_fused(module, parts).items())
    else:
        for part, tensor in parts.items():
            if tensor.kind in DTYPES:
                raise Unsupported(
                    f"tensor '{module}.{part}' holds {tensor.kind}, which {found.method} has no use for "
                    "there; download the release again, or use another"
                )
        return list(parts.items())
    bias = parts.get("bias")
    if bias is not None and dequantize(bias.data(), bias.kind, bias.shape).any():
        raise Unsupported(f"'{module}.bias' is not zero, and no Llama has a bias; use another release")
    return [("weight", matrix)]


def _part(
    module: str, parts: Parts, name: str, kinds: tuple[str, ...], shape: tuple[int | None, ...]
) -> RawTensor:
    """A part of a matrix, its type and shape checked; None is any length."""
    tensor = parts.get(name)
    wanted = f"{' or '.join(kinds)} of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
    if tensor is None:
        raise BadFile(f"the quantized matrix {module!r} needs {name} ({wanted}), found none; download again")
    fits = len(tensor.shape) == len(shape) and all(
        wanted in (None, n) for n, wanted in zip(tensor.shape, shape, strict=True)
    )
    if tensor.kind not in kinds or not fits or 0 in tensor.shape:
        raise BadFile(
            f"tensor '{module}.{name}' must be {wanted}, found {tensor.kind} of shape {tensor.shape}; the "
            "release is damaged or its quantization_config is another's: download both again"
        )
    return tensor


def _numbers(tensor: RawTensor) -> NDArray[Any]:
    return tensor.data().view(_NUMPY[tensor.kind]).reshape(tensor.shape)


def _floats(tensor: RawTensor) -> NDArray[np.float32]:
    return dequantize(tensor.data(), tensor.kind, tensor.shape)


def _made(
    module: str, kind: str, shape: tuple[int, int], parts: Parts, make: Callable[[], NDArray[np.uint8]]
) -> RawTensor:
    def release() -> None:
        for tensor in parts.values():
            tensor.release()

    return RawTensor(f"{module}.weight", kind, shape, make, release)


def _awq(found: Quantization, module: str, parts: Parts) -> RawTensor:
    words = _part(module, parts, "qweight", ("I32",), (None, None))
    n_in, n_out = words.shape[0], 8 * words.shape[1]
    size = found.group_size or n_in
    groups = -(-n_in // size)
    zeros = _part(module, parts, "qzeros", ("I32",), (groups, words.shape[1]))
    scales = _part(module, parts, "scales", _SCALES, (groups, n_out))
    kind = packed.int_kind(4, False, scales.kind, n_in, size, False)

    def make() -> NDArray[np.uint8]:
        codes_IO, zeros_GO = packed.unpack_awq(_numbers(words)), packed.unpack_awq(_numbers(zeros))
        matrix = packed.IntMatrix(codes_IO.T, zeros_GO.T.astype(np.int16), _floats(scales).T, size)
        return packed.blocks(matrix, kind)

    return _made(module, kind, (n_out, n_in), parts, make)


def _gptq(found: Quantization, module: str, parts: Parts) -> RawTensor:
    per_word = 32 // found.bits
    words = _part(module, parts, "qweight", ("I32",), (None, None))
    n_in, n_out = per_word * words.shape[0], words.shape[1]
    size = found.group_size or n_in
    groups = -(-n_in // size)
    zeros = _part(module, parts, "qzeros", ("I32",), (groups, -(-n_out // per_word)))
    scales = _part(module, parts, "scales", _SCALES, (groups, n_out))
    group_I = _order(module, parts, "g_idx", n_in, groups, size)
    kind = packed.int_kind(found.bits, found.symmetric, scales.kind, n_in, size, group_I is not None)

    def make() -> NDArray[np.uint8]:
        codes_OI = packed.unpack(np.ascontiguousarray(_numbers(words).T), found.bits)
        zeros_GO = packed.unpack(_numbers(zeros), found.bits)[:, :n_out].astype(np.int16)
        zeros_GO = (zeros_GO + found.zero_offset) & ((1 << found.bits) - 1)
        middle = 1 << (found.bits - 1)
        if found.symmetric and (zeros_GO != middle).any():
            raise BadFile(
                f"'{module}.qzeros' must all be {middle}, as sym of quantization_config says, and are not; "
                "download the release again, or use another"
            )
        return packed.blocks(packed.IntMatrix(codes_OI, zeros_GO.T, _floats(scales).T, size, group_I), kind)

    return _made(module, kind, (n_out, n_in), parts, make)


def _order(
    module: str, parts: Parts, name: str, n_in: int, groups: int, size: int
) -> NDArray[np.int64] | None:
    """The group of each input; None where they are neighbours, as they are if nothing says otherwise."""
    if name not in parts:
        return None
    group_I = _numbers(_part(module, parts, name, ("I32",), (n_in,))).astype(np.int64)
    if (group_I < 0).any() or (group_I >= groups).any():
        raise BadFile(f"'{module}.{name}' must name groups 0 to {groups - 1}, and names others; get it again")
    return None if np.array_equal(group_I, np.arange(n_in) // size) else group_I


def _compressed(module: str, parts: Parts) -> RawTensor:
    """Packed along the inputs, codes and zeros raised by half the range to be unsigned."""
    words = _part(module, parts, "weight_packed", ("I32",), (None, None))
    stated = _part(module, parts, "weight_shape", ("I64", "I32"), (2,))
    n_out, n_in = (int(n) for n in _numbers(stated))
    bits = next((b for b in (4, 8) if -(-n_in * b // 32) == words.shape[1]), 0)
    if n_out != words.shape[0] or not bits:
        raise BadFile(
            f"'{module}.weight_packed' must hold the ({n_out}, {n_in}) of weight_shape in 4 or 8 bits, found "
            f"{words.shape[0]} rows of {words.shape[1]} words; download the release again"
        )
    scales = _part(module, parts, "weight_scale", _SCALES, (n_out, None))
    groups = scales.shape[1]
    if n_in % groups:
        raise BadFile(
            f"'{module}.weight_scale' has {groups} groups of {n_in} inputs, which they do not divide"
        )
    size = n_in // groups
    group_I = _order(module, parts, "weight_g_idx", n_in, groups, size)
    zeros = _compressed_zeros(module, parts, bits, n_out, groups)
    kind = packed.int_kind(bits, zeros is None, scales.kind, n_in, size, group_I is not None)

    def make() -> NDArray[np.uint8]:
        codes_OI = packed.unpack(_numbers(words), bits)[:, :n_in]
        zeros_OG = np.full((n_out, groups), 1 << (bits - 1), np.int16) if zeros is None else zeros()
        return packed.blocks(packed.IntMatrix(codes_OI, zeros_OG, _floats(scales), size, group_I), kind)

    return _made(module, kind, (n_out, n_in), parts, make)


def _compressed_zeros(
    module: str, parts: Parts, bits: int, n_out: int, groups: int
) -> Callable[[], NDArray[np.int16]] | None:
    """Zeros [O, G] as unsigned as the codes: packed along the outputs, or in older releases int8."""
    if "weight_zero_point" not in parts:
        return None
    if parts["weight_zero_point"].kind == "I8":
        whole = _part(module, parts, "weight_zero_point", ("I8",), (n_out, groups))
        return lambda: _numbers(whole).astype(np.int16) + np.int16(1 << (bits - 1))
    words = _part(module, parts, "weight_zero_point", ("I32",), (-(-n_out * bits // 32), groups))
    return lambda: packed.unpack(np.ascontiguousarray(_numbers(words).T), bits)[:, :n_out].T.astype(np.int16)


def _int8(module: str, parts: Parts) -> RawTensor:
    """compressed-tensors' int-quantized: a byte each, a scale for an output, a group or all."""
    weight = _part(module, parts, "weight", ("I8",), (None, None))
    n_out, n_in = weight.shape
    scales, size = _scales(module, parts, "weight_scale", (n_out, n_in), None)
    if "weight_zero_point" in parts and _numbers(parts["weight_zero_point"]).any():
        raise Unsupported(
            f"'{module}.weight_zero_point' is not zero, and Puna reads symmetric 8-bit integers of a byte "
            "each; use another release"
        )
    kind = packed.int_kind(8, True, parts["weight_scale"].kind, n_in, size, False)

    def make() -> NDArray[np.uint8]:
        codes_OI = _numbers(weight).view(np.uint8) ^ np.uint8(128)
        scales_OG = scales()
        zeros_OG = np.full(scales_OG.shape, 128, np.int16)
        return packed.blocks(packed.IntMatrix(codes_OI, zeros_OG, scales_OG, size), kind)

    return _made(module, kind, (n_out, n_in), parts, make)


def _fp8(found: Quantization, module: str, parts: Parts) -> RawTensor:
    weight = _part(module, parts, "weight", ("F8_E4M3",), (None, None))
    n_out, n_in = weight.shape
    name = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    scales, columns = _scales(module, parts, name, (n_out, n_in), found.block)
    kind = packed.fp8_kind(n_in, columns)

    def make() -> NDArray[np.uint8]:
        codes_OI = _numbers(weight)
        packed.refuse_nan(f"{module}.weight", codes_OI)
        return packed.fp8_blocks(codes_OI, scales(), columns, kind)

    return _made(module, kind, (n_out, n_in), parts, make)


def _scales(
    module: str, parts: Parts, name: str, shape: tuple[int, int], block: tuple[int, int] | None
) -> tuple[Callable[[], NDArray[np.float32]], int]:
    """Scales [O, G], and the inputs of a group, from one for all, for an output, a group or a block."""
    n_out, n_in = shape
    tensor = parts.get(name)
    if tensor is not None and tensor.kind in _SCALES and tensor.shape in ((), (1,), (1, 1)):
        return lambda: np.full((n_out, 1), _floats(tensor).reshape(()), np.float32), n_in
    if tensor is not None and tensor.shape == (n_out,):
        tensor = replace(tensor, shape=(n_out, 1))
    if tensor is not None and len(tensor.shape) == 2 and tensor.shape[0] not in (0, n_out):
        rows, columns = block or (128, 128)  # compressed-tensors' and DeepSeek's only size
        grid = (-(-n_out // rows), -(-n_in // columns))
        blocks = _part(module, parts, name, _SCALES, grid)
        return lambda: np.repeat(_floats(blocks), rows, axis=0)[:n_out], columns
    rows_of = _part(module, {} if tensor is None else {name: tensor}, name, _SCALES, (n_out, None))
    groups = rows_of.shape[1]
    if n_in % groups:
        raise BadFile(f"'{module}.{name}' has {groups} groups of {n_in} inputs, which they do not divide")
    return partial(_floats, rows_of), n_in // groups
