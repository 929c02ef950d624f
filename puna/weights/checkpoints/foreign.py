"""Tensors of files as ours and back, made when asked for: model/incoming.py and outgoing.py on bytes.

Nothing is read here but by the `data()` of what is returned, which takes one tensor's memory at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.model.config import ModelConfig
from puna.model.incoming import Slice, incoming
from puna.model.names import Scheme
from puna.model.outgoing import Foreign, outgoing
from puna.weights.blocks.formats import FORMATS
from puna.weights.blocks.tensor import RawTensor


def to_ours(scheme: Scheme, config: ModelConfig, stored: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """All tensors of a checkpoint under our names.

    Raises Unsupported for a tensor that the model has no use for, BadFile for one that is there twice or of a
    shape that cannot hold its parts; names.check_shapes looks at what remains.
    """
    tensors: dict[str, RawTensor] = {}
    for name, tensor in stored.items():
        parts = incoming(scheme, name, config)
        for part, shape in zip(parts, _shapes(tensor, parts), strict=True):
            if part.ours in tensors:
                raise BadFile(
                    f"two tensors are {part.ours!r}, {name!r} is one of them; convert the checkpoint again"
                )
            tensors[part.ours] = _part(tensor, part, shape)
    return tensors


def _shapes(tensor: RawTensor, parts: Sequence[Slice]) -> list[tuple[int, ...]]:
    """The shapes of a tensor's parts, once it is known to be made of them."""
    found = [part.shape_of(tensor.shape) for part in parts]
    shapes = [shape for shape in found if shape is not None]
    n_values = sum(map(prod, shapes))
    if len(shapes) < len(parts) or (len(parts) > 1 and n_values != prod(tensor.shape)):
        names = ", ".join(repr(part.ours) for part in parts)
        raise BadFile(
            f"tensor {tensor.name!r} of shape {tensor.shape} cannot hold {names} of the model that the "
            "checkpoint's configuration describes; convert or download it again"
        )
    return shapes


def _part(tensor: RawTensor, part: Slice, shape: tuple[int, ...]) -> RawTensor:
    if part == Slice(part.ours):
        return replace(tensor, name=part.ours)
    if replace(part, view=()) == Slice(part.ours):
        return replace(tensor, name=part.ours, shape=shape)
    return replace(tensor, name=part.ours, shape=shape, data=partial(_cut, tensor, part))


def _cut(tensor: RawTensor, part: Slice) -> NDArray[np.uint8]:
    return _bytes(part.of(_array(tensor)))


def _array(tensor: RawTensor) -> NDArray[Any]:
    """The values of a tensor, whatever their bits mean; of blocks, the bytes of each row."""
    data = tensor.data()
    fmt = FORMATS[tensor.kind]
    if fmt.block_len == 1:
        return data.view(fmt.layout).reshape(tensor.shape)
    return data.reshape(*tensor.shape[:-1], -1)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def to_foreign(scheme: Scheme, config: ModelConfig, tensors: Mapping[str, RawTensor]) -> list[RawTensor]:
    """The tensors of a checkpoint in another's layout, from ours by name.

    Raises Unsupported for what it has no place for, and where tensors of several kinds would be one there.
    """
    return [
        _whole(foreign, [tensors[part.ours] for part in foreign.parts])
        for foreign in outgoing(scheme, config)
    ]


def _whole(foreign: Foreign, parts: Sequence[RawTensor]) -> RawTensor:
    first = parts[0]
    if foreign.is_ours:
        return replace(first, name=foreign.name, shape=foreign.shape)
    kinds = sorted({part.kind for part in parts})
    if len(kinds) > 1:
        raise Unsupported(
            f"{' and '.join(repr(part.name) for part in parts)} are one tensor in this format, and theirs "
            f"hold {' and '.join(kinds)}; add --dtype bf16 (or f16, f32) to give them one"
        )

    def release() -> None:
        for part in parts:
            part.release()

    read = partial(_join, foreign, parts)
    return replace(first, name=foreign.name, shape=foreign.shape, data=read, release=release)


def _join(foreign: Foreign, parts: Sequence[RawTensor]) -> NDArray[np.uint8]:
    arrays = {part.name: _array(part) for part in parts}
    (width,) = {array.shape[-1] for array in arrays.values()} if _is_blocks(parts[0]) else {foreign.shape[-1]}
    return _bytes(replace(foreign, shape=(*foreign.shape[:-1], width)).of(arrays))


def _is_blocks(tensor: RawTensor) -> bool:
    return FORMATS[tensor.kind].block_len > 1
