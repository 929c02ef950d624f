"""Matrices that bitsandbytes keeps in 4 bits (NF4, FP4): the values that it computes with.

A value is one of sixteen float32 levels times the largest magnitude of its block of 64 or so neighbours,
rounded to the type that the release names; no block format holds levels like these, so that a matrix becomes
that type. Beside NAME stand NAME.absmax, NAME.quant_map and a JSON object in NAME.quant_state.*; where the
magnitudes are quantized again, NAME.nested_absmax and NAME.nested_quant_map.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.safetensors import parse_json

_KINDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_CHUNK = 1 << 22  # values made at a time; whole blocks


def join_nf4(stored: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """The tensors of a release with each matrix as one; others as they are.

    Raises BadFile where parts are missing or do not fit, Unsupported for bytes that are no such matrix.
    """
    states = {name.removesuffix(end): name for name in stored for end in _STATES if name.endswith(end)}
    used = {name + part for name in states for part in _PARTS} | set(states.values())
    tensors: dict[str, RawTensor] = {}
    for name, tensor in stored.items():
        if name in states:
            tensors[name] = _matrix(name, stored, stored[states[name]])
        elif name not in used:
            if tensor.kind not in _KINDS.values():
                raise Unsupported(
                    f"tensor {name!r} holds {tensor.kind} and is no 4-bit matrix of bitsandbytes; use "
                    "another release"
                )
            tensors[name] = tensor
    return tensors


def _matrix(name: str, stored: Mapping[str, RawTensor], state: RawTensor) -> RawTensor:
    facts = parse_json(state.data().tobytes(), f"'{state.name}'")
    shape, kind = facts.get("shape"), _KINDS.get(str(facts.get("dtype")))
    block = _count(name, facts, "blocksize")
    if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 1 << 31 for n in shape) or not kind:
        raise BadFile(
            f"'{state.name}' must state a shape and a dtype of {', '.join(_KINDS)}, found {facts!r:.80}; "
            "download the release again"
        )
    size = prod(shape)
    n_blocks = -(-size // block)
    parts = {"": _part(name, "", stored, ("U8",), -(-size // 2))}
    parts["quant_map"] = _part(name, ".quant_map", stored, ("F32",), 16)
    nested = f"{name}.nested_absmax" in stored
    parts["absmax"] = _part(name, ".absmax", stored, ("U8",) if nested else ("F32",), n_blocks)
    if nested:
        outer = _count(name, facts, "nested_blocksize")
        parts["nested_absmax"] = _part(name, ".nested_absmax", stored, ("F32",), -(-n_blocks // outer))
        parts["nested_quant_map"] = _part(name, ".nested_quant_map", stored, ("F32",), 256)
        if type(facts.get("nested_offset")) not in (int, float):
            raise BadFile(f"'{state.name}' must state a nested_offset, and does not; download it again")

    def release() -> None:
        for part in parts.values():
            part.release()

    return RawTensor(name, kind, tuple(shape), partial(_values, parts, facts, kind, size), release)


def _count(name: str, facts: Mapping[str, Any], key: str) -> int:
    value = facts.get(key)
    if type(value) is not int or not 0 < value <= 1 << 20 or value & (value - 1):
        raise BadFile(f"{key} of the 4-bit matrix {name!r} must be a power of two, found {value!r:.40}")
    return value


def _part(
    name: str, part: str, stored: Mapping[str, RawTensor], kinds: tuple[str, ...], n_values: int
) -> RawTensor:
    tensor = stored.get(name + part)
    if tensor is None or tensor.kind not in kinds or prod(tensor.shape) != n_values:
        found = "none" if tensor is None else f"{tensor.kind} of shape {tensor.shape}"
        raise BadFile(
            f"the 4-bit matrix {name!r} needs '{name}{part}' ({n_values:,} numbers of {' or '.join(kinds)}), "
            f"found {found}; download the release again"
        )
    return tensor


def _floats(tensor: RawTensor) -> NDArray[np.float32]:
    return dequantize(tensor.data(), tensor.kind, (prod(tensor.shape),))


def _values(
    parts: Mapping[str, RawTensor], facts: Mapping[str, Any], kind: str, size: int
) -> NDArray[np.uint8]:
    """All values as `kind`, uint8 [n_bytes]; of two neighbours the first is in the high bits."""
    with np.errstate(all="ignore"):  # numbers of a damaged file
        scales = _magnitudes(parts, facts)
        levels, packed, block = _floats(parts["quant_map"]), parts[""].data(), int(facts["blocksize"])
        made = []
        for at in range(0, size, _CHUNK):
            codes = packed[at // 2 : (at + _CHUNK) // 2]
            values = levels[np.stack((codes >> 4, codes & 15), -1).reshape(-1)[: size - at]]
            blocks = np.repeat(scales[at // block : -(-(at + values.size) // block)], block)
            made.append(quantize((values * blocks[: values.size])[:, None], kind))
    return np.concatenate(made)


def _magnitudes(parts: Mapping[str, RawTensor], facts: Mapping[str, Any]) -> NDArray[np.float32]:
    """The largest magnitude of every block."""
    if "nested_absmax" not in parts:
        return _floats(parts["absmax"])
    codes = parts["absmax"].data()
    outer = np.repeat(_floats(parts["nested_absmax"]), int(facts["nested_blocksize"]))[: codes.size]
    inner = _floats(parts["nested_quant_map"])[codes] * outer
    shifted: NDArray[np.float32] = inner + np.float32(facts["nested_offset"])
    return shifted
