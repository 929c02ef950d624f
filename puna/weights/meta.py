"""Checkpoints as Meta gives them out: params.json and consolidated.NN.pth, one file for each GPU it ran on.

Each file holds a part of every matrix (fairscale's parallel layers): of wq wk wv w1 w3 and output a part of
the rows, of wo and w2 a part of the columns, of tok_embeddings columns up to Llama 2 and rows since; norms
are in all of them, equal. Where there are more files than key/value heads (Llama 3.1 405B in 16), heads are
repeated.

Shapes: K key/value heads, N copies of each, W values of the rows of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, BadValue
from puna.model import catalog, names
from puna.model.config import ModelConfig, from_meta
from puna.model.record import Record
from puna.weights.describe import is_dense, require_dense
from puna.weights.folder import meta_shards
from puna.weights.formats import FORMATS
from puna.weights.layout import Layout, Slice
from puna.weights.pth import PthFile, layout
from puna.weights.safetensors import read_json
from puna.weights.tensor import RawTensor

# The axis along which the files share out a matrix; norms are whole in each.
_AXIS = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}
_CHUNK = 1 << 24  # bytes compared at a time


@dataclass(frozen=True, slots=True)
class MetaCheckpoint:
    config: ModelConfig
    tensors: dict[str, RawTensor]  # by our names
    files: list[PthFile]


def open_folder(folder: Path) -> MetaCheckpoint:
    """Open all files of a folder; nothing but tables is read, and a second embedding table compared.

    Raises BadFile for files that are missing or do not belong together, and for shapes that params.json does
    not describe; whatever has to be equal in several files is compared when it is read.
    """
    params = read_json(folder / "params.json")
    files = [PthFile.open(path) for path in meta_shards(folder)]
    shards = _shards(files)
    _check_count(Record(params, "params.json"), shards, len(files))
    axis = _embeddings_axis(params, shards["tok_embeddings"])
    vocab_size = shards["tok_embeddings"][0].shape[0] * (len(files) if axis == 0 else 1)
    config = read_params(params, vocab_size)
    tensors = {
        name: _joined(name, parts, axis if name == "tok_embeddings" else _AXIS.get(_part(name)))
        for name, parts in shards.items()
    }
    tensors = {name: _without_copies(config, tensor) for name, tensor in tensors.items()}
    names.check_shapes(
        replace(config, tied="output" not in tensors), {n: t.shape for n, t in tensors.items()}
    )
    return MetaCheckpoint(replace(config, tied=_is_tied(shards, tensors)), tensors, files)


def _part(name: str) -> str:
    return name.rpartition(".")[2]


def _shards(files: Sequence[PthFile]) -> dict[str, list[RawTensor]]:
    """The parts of each tensor, by our names, in the order of the files."""
    stored = [{tensor.name: tensor for tensor in file.raw_tensors()} for file in files]
    for file, tensors in zip(files, stored, strict=True):
        odd = tensors.keys() ^ stored[0].keys()
        if odd:
            raise BadFile(
                f"{file.path.name} and {files[0].path.name} must hold parts of the same tensors, "
                f"{min(odd)!r} is in one of them only; bring the files of one checkpoint together again"
            )
    shards: dict[str, list[RawTensor]] = {}
    for name, first in stored[0].items():
        ours = names.from_meta(name)
        if ours is None:
            continue
        shards[ours] = [tensors[name] for tensors in stored]
        for file, part in zip(files, shards[ours], strict=True):
            if (part.kind, part.shape) != (first.kind, first.shape):
                raise BadFile(
                    f"tensor {name!r} must be alike in all files, it is {first.kind} {first.shape} in the "
                    f"first and {part.kind} {part.shape} in {file.path.name}; bring the files of one "
                    "checkpoint together"
                )
    return shards


def _check_count(params: Record, shards: Mapping[str, list[RawTensor]], n_files: int) -> None:
    """Raise BadFile unless there are as many files as the shapes of their parts tell."""
    for name in ("tok_embeddings", "layers.0.wq"):
        if name not in shards or len(shards[name][0].shape) != 2:
            raise BadFile(f"the checkpoint lacks the matrix {name!r}; download it again")
    dim, rows = params.integer("dim"), shards["layers.0.wq"][0].shape[0]
    if rows and rows * n_files != dim and dim % rows == 0:
        raise BadFile(
            f"by its shapes the checkpoint was saved in {dim // rows} files, found {n_files}; get all "
            "consolidated.NN.pth, and no others, into one folder"
        )


def _embeddings_axis(params: Mapping[str, Any], parts: Sequence[RawTensor]) -> int | None:
    """0 where each file has some rows of the table, 1 where it has some columns, None for a single file."""
    dim, width = params["dim"], parts[0].shape[1]
    if len(parts) == 1:
        return None if width == dim else _wrong_width(width, dim)
    if width == dim:
        return 0
    return 1 if width * len(parts) == dim else _wrong_width(width, dim)


def _wrong_width(width: int, dim: int) -> int:
    raise BadFile(
        f"tok_embeddings must have the {dim} columns of params.json (dim), or an equal part of them in each "
        f"file, found {width}; bring the files of one checkpoint together again"
    )


def read_params(params: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """params.json, and what it leaves out as far as the catalog knows a release of this shape."""
    config = from_meta(params, vocab_size)
    require_dense(config, "the reader of Meta's files")
    known = _release(config)
    if known is None:
        return config
    return replace(
        config,
        n_kv_heads=known.n_kv_heads,
        context_length=known.context_length,
        rope_scaling=known.rope_scaling,
    )


def _release(config: ModelConfig) -> ModelConfig | None:
    alike = ("dim", "n_layers", "n_heads", "head_dim", "ffn_dim", "vocab_size", "norm_eps", "rope_theta")
    for entry in catalog.CATALOG:
        known = entry.config
        if (
            is_dense(known)
            and all(getattr(known, name) == getattr(config, name) for name in alike)
            and (known.rope_scaling is None) == (config.rope_scaling is None)
            and config.n_kv_heads % known.n_kv_heads == 0
        ):
            return known
    return None


def _joined(name: str, parts: list[RawTensor], axis: int | None) -> RawTensor:
    """The whole of a tensor. Its bytes are put together, or compared, when they are asked for."""
    first = parts[0]
    if len(parts) == 1:
        return replace(first, name=name)

    def release() -> None:
        for part in parts:
            part.release()

    if axis is None:
        return replace(first, name=name, data=partial(_equal, name, parts), release=release)
    if len(first.shape) != 2:
        raise BadFile(f"tensor {name!r} must be a matrix, found shape {first.shape}; download it again")
    shape = tuple(n * len(parts) if i == axis else n for i, n in enumerate(first.shape))
    return replace(first, name=name, shape=shape, data=partial(_concatenated, parts, axis), release=release)


def _concatenated(parts: Sequence[RawTensor], axis: int) -> NDArray[np.uint8]:
    rows = [part.data().reshape(part.shape[0], -1) for part in parts]
    return np.concatenate(rows, axis).reshape(-1)


def _equal(name: str, parts: Sequence[RawTensor]) -> NDArray[np.uint8]:
    first = parts[0].data()
    for i, part in enumerate(parts):
        if not np.array_equal(part.data(), first):
            raise BadFile(
                f"tensor {name!r} must be equal in all files, file {i:02d} has other values than 00; bring "
                "the files of one checkpoint together again"
            )
    return first


def _without_copies(config: ModelConfig, tensor: RawTensor) -> RawTensor:
    """wk and wv with each head once."""
    wanted = config.n_kv_heads * config.head_dim
    if _part(tensor.name) not in ("wk", "wv") or not tensor.shape[0] or tensor.shape[0] % wanted:
        return tensor
    copies = tensor.shape[0] // wanted
    if copies == 1:
        return tensor
    read = partial(_one_of_each, tensor, config.n_kv_heads, copies)
    return replace(tensor, shape=(wanted, *tensor.shape[1:]), data=read)


def _one_of_each(tensor: RawTensor, n_heads: int, copies: int) -> NDArray[np.uint8]:
    heads_KNW = tensor.data().reshape(n_heads, copies, -1)
    if not (heads_KNW == heads_KNW[:, :1]).all():
        raise BadFile(
            f"the heads of {tensor.name!r} must come {copies} times each, as the number of files asks for, "
            "and their copies differ; download the checkpoint again"
        )
    return np.ascontiguousarray(heads_KNW[:, 0]).reshape(-1)


def _is_tied(shards: Mapping[str, list[RawTensor]], tensors: Mapping[str, RawTensor]) -> bool:
    """Whether the output is the embedding table. Meta's files hold it twice then; most differ at once."""
    if "output" not in tensors:
        return True
    tables = [shards[name][0] for name in ("tok_embeddings", "output")]
    if tables[0].kind != tables[1].kind or tensors["tok_embeddings"].shape != tensors["output"].shape:
        return False
    width = FORMATS[tables[0].kind].block_bytes * min(table.shape[1] for table in tables)
    first_rows = [table.data().reshape(table.shape[0], -1)[:1, :width] for table in tables]
    if not first_rows[0].size or not np.array_equal(first_rows[0], first_rows[1]):
        return False
    a, b = tensors["tok_embeddings"].data(), tensors["output"].data()
    return all(np.array_equal(a[at : at + _CHUNK], b[at : at + _CHUNK]) for at in range(0, a.size, _CHUNK))


def shard_layouts(config: ModelConfig, tensors: Sequence[RawTensor], n_files: int) -> list[Layout]:
    """consolidated.NN.pth for `tensors` (our names; F32, F16 or BF16), shared out over `n_files`.

    Raises BadValue where the heads cannot be shared out.
    """
    shared = (config.n_heads, config.n_kv_heads, config.ffn_dim, config.dim, config.vocab_size)
    if not 1 <= n_files <= 100 or any(n % n_files for n in shared):
        raise BadValue(
            f"the number of files must divide {config.n_kv_heads} key/value heads, the vocabulary of "
            f"{config.vocab_size} and all widths, got {n_files}"
        )
    # Llama 1 and 2, the only releases with the first paper's rotary base, have columns of the table in each.
    axes = {**_AXIS, "tok_embeddings": 1 if config.rope_theta == 10000.0 else 0}
    layouts = []
    for i in range(n_files):
        slices = []
        for tensor in tensors:
            axis = axes.get(_part(tensor.name))
            name = names.to_meta(tensor.name)
            slices.append(
                Slice(name, tensor) if axis is None else Slice(name, tensor, axis, i, n_files)
            )  # norms are whole in each
        layouts.append(layout(f"consolidated.{i:02d}.pth", slices))
    return layouts
