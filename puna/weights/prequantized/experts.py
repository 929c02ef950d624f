"""Experts of Llama 4 in quantized releases of Hugging Face's layout: one tensor for each of three matrices.

Meta's FP8 release and those of compressed-tensors have a module for each expert, `PREFIX.7.gate_proj`; what
transformers saves with fbgemm_fp8 has all of them in `PREFIX.gate_up_proj` [E, D, 2F] and `PREFIX.down_proj`
[E, F, D] of 8-bit floats, which multiply from the right, with `..._scale` for every output: [E, 1, 2F] and
[E, D, 1]. Both become `PREFIX.{gate,up,down}_proj.weight` [E, outputs, inputs].

Shapes: E experts, D dim, F width of an expert, O outputs, I inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.prequantized import packed

_ONE = re.compile(r"(.*\.feed_forward\.experts)\.(\d{1,5})\.((?:gate|up|down)_proj\.weight)")
_SCALES = ("F16", "BF16", "F32")


def stack_experts(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """`tensors` with the matrices of single experts put together, each stack where its first expert was.

    Raises BadFile where an expert is missing or differs from the others.
    """
    stacks: dict[str, dict[int, RawTensor]] = {}
    result: dict[str, RawTensor] = {}
    for name, tensor in tensors.items():
        match = _ONE.fullmatch(name)
        if match is None:
            result[name] = tensor
            continue
        whole = f"{match[1]}.{match[3]}"
        stacks.setdefault(whole, {})[int(match[2])] = tensor
        result[whole] = tensor  # keeps its place
    for whole, experts in stacks.items():
        result[whole] = _stack(whole, experts)
    return result


def _stack(name: str, experts: Mapping[int, RawTensor]) -> RawTensor:
    missing = next((e for e in range(len(experts)) if e not in experts), None)
    if missing is not None:
        raise BadFile(f"{name!r} lacks expert {missing} of {max(experts) + 1}; get all files of the release")
    parts = [experts[e] for e in range(len(experts))]
    first = parts[0]
    odd = next((p for p in parts if (p.kind, p.shape) != (first.kind, first.shape)), None)
    if odd is not None:
        raise BadFile(
            f"experts must be alike, {first.name!r} is {first.kind} {first.shape} and {odd.name!r} is "
            f"{odd.kind} {odd.shape}; download the release again"
        )

    def read() -> NDArray[np.uint8]:
        out = np.empty(len(parts) * first.n_bytes, np.uint8)
        for part, place in zip(parts, out.reshape(len(parts), -1), strict=True):
            place[:] = part.data()
            part.release()
        return out

    def release() -> None:
        for part in parts:
            part.release()

    return RawTensor(name, first.kind, (len(parts), *first.shape), read, release)


def is_fused(parts: Mapping[str, RawTensor]) -> bool:
    """Whether the parts of a module are experts that transformers has fused, in 8-bit floats."""
    return any(name in parts and parts[name].kind == "F8_E4M3" for name in ("gate_up_proj", "down_proj"))


def split_fused(module: str, parts: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """gate_proj, up_proj and down_proj, [E, O, I] with a scale for every row, from fused ones."""
    result: dict[str, RawTensor] = {}
    for name, outputs in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
        weight, scale = parts.get(name), parts.get(f"{name}_scale")
        if weight is None or len(weight.shape) != 3 or 0 in weight.shape or weight.kind != "F8_E4M3":
            found = "none" if weight is None else f"{weight.kind} of shape {weight.shape}"
            raise BadFile(
                f"the experts {module!r} need {name} (F8_E4M3 of three axes), found {found}; download again"
            )
        n_experts, _, width = weight.shape
        shapes = ((n_experts, 1, width), (n_experts, width, 1))
        if scale is None or scale.shape not in shapes or scale.kind not in _SCALES or width % len(outputs):
            found = "none" if scale is None else f"{scale.kind} of shape {scale.shape}"
            raise BadFile(
                f"'{module}.{name}' of shape {weight.shape} needs {name}_scale, a float for each of "
                f"{n_experts} x {width} outputs, found {found}; download the release again"
            )
        n_out = width // len(outputs)
        for i, output in enumerate(outputs):
            part = f"{module}.{output}.weight"
            result[f"{output}.weight"] = _turned(part, weight, scale, slice(i * n_out, (i + 1) * n_out))
    return result


def _turned(name: str, weight: RawTensor, scale: RawTensor, outputs: slice) -> RawTensor:
    n_experts, n_in, _ = weight.shape
    shape = (n_experts, outputs.stop - outputs.start, n_in)
    kind = packed.fp8_kind(n_in, n_in)

    def release() -> None:
        weight.release()
        scale.release()

    return replace(
        weight,
        name=name,
        kind=kind,
        shape=shape,
        data=partial(_turn, weight, scale, outputs, shape, kind),
        release=release,
    )


def _turn(
    weight: RawTensor, scale: RawTensor, outputs: slice, shape: tuple[int, int, int], kind: str
) -> NDArray[np.uint8]:
    codes_EOI = weight.data().reshape(weight.shape)[:, :, outputs].swapaxes(1, 2)
    packed.refuse_nan(weight.name, codes_EOI)
    n_experts, _, n_in = shape
    scales_EO = dequantize(scale.data(), scale.kind, (n_experts, weight.shape[2]))[:, outputs]
    parts = [
        packed.fp8_blocks(codes_OI, scales_O[:, None], n_in, kind)
        for codes_OI, scales_O in zip(codes_EOI, scales_EO, strict=True)
    ]
    return np.concatenate(parts)
