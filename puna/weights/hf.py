"""Checkpoints as Hugging Face's folders have them: config.json and safetensors files.

Rows of wq and wk are stored in halves there (names.PERMUTED); they are put pair by pair when they are read.

Shapes: R rows, X row length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile
from puna.model import names
from puna.model.config import ModelConfig, from_hf
from puna.weights.describe import require_dense
from puna.weights.folder import INDEX
from puna.weights.quantization import read_quantization
from puna.weights.quantized import DTYPES, put_together
from puna.weights.safetensors import SafetensorsFile, open_sharded, read_json
from puna.weights.tensor import RawTensor


def open_files(folder: Path) -> list[SafetensorsFile]:
    """The weights of a folder: all files of its index, or its only file."""
    if (folder / INDEX).exists():
        return open_sharded(folder / INDEX)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise BadFile(
            f"expected model.safetensors, or {INDEX} with the files that it names, found {len(found)} "
            ".safetensors files without an index; get the index too"
        )
    return [SafetensorsFile.open(found[0])]


def read_tensors(folder: Path, files: Sequence[SafetensorsFile]) -> tuple[dict[str, RawTensor], str]:
    """The tensors of a folder by their names, and how they are quantized ("" where they are not).

    The parts of a quantized matrix are one tensor (quantized.py).
    """
    found = read_quantization(read_json(folder / "config.json"))
    parts = DTYPES if found else ()
    stored = {tensor.name: tensor for file in files for tensor in file.raw_tensors(parts)}
    return (put_together(found, stored), str(found)) if found else (stored, "")


def read_config(folder: Path) -> ModelConfig:
    """What config.json says of the model."""
    described = from_hf(read_json(folder / "config.json"))
    require_dense(described, "the reader of such folders")
    return described


def our_tensors(config: ModelConfig, stored: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """Under our names, rows of wq and wk pair by pair, made when asked for."""
    tensors: dict[str, RawTensor] = {}
    for name, tensor in stored.items():
        ours = names.from_hf(name)
        if ours is None:
            continue
        if ours in tensors:
            raise BadFile(f"two tensors are {ours!r}, {name!r} is one of them; convert the checkpoint again")
        heads = permuted_heads(config, ours)
        read = tensor.data if heads is None else partial(_unpermuted, tensor, heads)
        tensors[ours] = replace(tensor, name=ours, data=read)
    return tensors


def permuted_heads(config: ModelConfig, name: str) -> int | None:
    """The heads of a tensor (our name) whose rows Hugging Face orders otherwise; None for all others."""
    part = name.rpartition(".")[2]
    if part not in names.PERMUTED:
        return None
    return config.n_heads if part == "wq" else config.n_kv_heads


def _unpermuted(tensor: RawTensor, n_heads: int) -> NDArray[np.uint8]:
    return _rows(tensor, lambda rows_RX: names.unpermute(rows_RX, n_heads))


def to_hf(config: ModelConfig, tensor: RawTensor) -> RawTensor:
    """A tensor of ours (F32, F16 or BF16) under Hugging Face's name and in its order of rows."""
    heads = permuted_heads(config, tensor.name)
    name = names.to_hf(tensor.name)
    if heads is None:
        return replace(tensor, name=name)
    return replace(tensor, name=name, data=partial(_permuted, tensor, heads))


def _permuted(tensor: RawTensor, n_heads: int) -> NDArray[np.uint8]:
    return _rows(tensor, lambda rows_RX: names.permute(rows_RX, n_heads))


def _rows(tensor: RawTensor, reorder: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The tensor's bytes with rows reordered; whole rows move, so their kind does not matter."""
    rows_RX = tensor.data().reshape(tensor.shape[0], -1)
    return reorder(rows_RX).reshape(-1)
