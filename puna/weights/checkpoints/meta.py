"""Checkpoints as Meta gives them out: params.json and consolidated.NN.pth, one file for each GPU it ran on.

Each file holds a part of every matrix (meta_parts.py says which): of tok_embeddings columns up to Llama 2 and
rows since. Where there are more files than key/value heads (Llama 3.1 405B in 16), heads are repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, BadValue, Unsupported
from puna.model import catalog, names
from puna.model.config import ModelConfig, from_meta
from puna.model.record import Record
from puna.weights.blocks.formats import FORMATS
from puna.weights.blocks.tensor import RawTensor
from puna.weights.checkpoints import foreign
from puna.weights.checkpoints.meta_parts import joined, share, without_copies
from puna.weights.describe.config import is_dense
from puna.weights.files.layout import Layout, Slice
from puna.weights.files.pth import PthFile, layout
from puna.weights.files.safetensors import read_json
from puna.weights.folder import meta_shards
from puna.weights.prequantized.meta_config import MetaQuantization, read_meta_quantization

_CHUNK = 1 << 24  # bytes compared at a time
_TABLES = ("tok_embeddings", "output")


@dataclass(frozen=True, slots=True)
class MetaCheckpoint:
    config: ModelConfig
    tensors: dict[str, RawTensor]  # by our names
    files: list[PthFile]
    quantization: str = ""  # how matrices were quantized; else empty


def open_folder(folder: Path) -> MetaCheckpoint:
    """Open all files of a folder; nothing but tables is read, and a second embedding table compared.

    Raises BadFile for files that are missing or do not belong together, and for shapes that params.json does
    not describe; whatever has to be equal in several files is compared when it is read.
    """
    params, quantized = read_meta_quantization(read_json(folder / "params.json"))
    files = [PthFile.open(path) for path in meta_shards(folder)]
    stored, quantization = _stored(folder, files, quantized)
    shards = _shards(files[: len(stored)], stored)
    table = _table(shards)
    _check_count(Record(params, "params.json"), shards, len(stored))
    axis = _embeddings_axis(params, shards[table])
    vocab_size = shards[table][0].shape[0] * (len(stored) if axis == 0 else 1)
    config = read_params(params, vocab_size, int4=quantized is not None)
    if quantized is not None:
        config = replace(config, ffn_hadamard=quantized.spinquant, lora_rank=quantized.lora_rank)
    whole = {name: joined(parts, share(name, config, axis)) for name, parts in shards.items()}
    tensors = foreign.to_ours("meta", config, whole)
    tensors = {name: without_copies(config, tensor) for name, tensor in tensors.items()}
    names.check_shapes(
        replace(config, tied="output" not in tensors), {n: t.shape for n, t in tensors.items()}
    )
    tied = _is_tied(shards, table, tensors) if quantized is None else _same_codes(files[0])
    config = replace(config, tied=tied)
    return MetaCheckpoint(config, tensors, files, quantization)


def _stored(
    folder: Path, files: list[PthFile], quantized: MetaQuantization | None
) -> tuple[list[dict[str, RawTensor]], str]:
    """The tensors of each file by Meta's names, and how they are quantized ("" where they are not).

    Files of scales are opened and added to `files`.
    """
    if quantized is not None:
        if len(files) > 1:
            raise Unsupported(
                f"params.json states quantization_args, and the checkpoint has {len(files)} files; Puna "
                "reads int4 releases of one, as Meta publishes them"
            )
        from puna.weights.prequantized.meta_int4 import join_meta_int4

        tensors = {t.name: t for t in files[0].raw_tensors(("I8",))}
        return [join_meta_int4(quantized, tensors)], str(quantized)
    stored = [{tensor.name: tensor for tensor in file.raw_tensors(("F8_E4M3",))} for file in files]
    if not any(tensor.kind == "F8_E4M3" for tensors in stored for tensor in tensors.values()):
        return stored, ""
    from puna.weights.prequantized.meta_fp8 import join_meta_fp8

    joined_stored = []
    for i, tensors in enumerate(stored):
        path = folder / f"fp8_scales_{i}.pt"
        if not path.is_file() and (folder / f"int4_scales_{i}.pt").is_file():
            raise Unsupported(
                "Meta's int4 experts of Llama 4 are not read; use its fp8 files, or the release in bf16"
            )
        if not path.is_file():
            raise BadFile(f"{path.name} is missing, the scales of 8-bit floats in file {i:02d}; get it too")
        files.append(PthFile.open(path))
        scales = {tensor.name: tensor for tensor in files[-1].raw_tensors()}
        joined_stored.append(join_meta_fp8(tensors, scales, i))
    return joined_stored, "Meta's fp8"


def _shards(
    files: Sequence[PthFile], stored: Sequence[Mapping[str, RawTensor]]
) -> dict[str, list[RawTensor]]:
    """The parts of each tensor, by Meta's names, in the order of the files."""
    for file, tensors in zip(files, stored, strict=True):
        odd = tensors.keys() ^ stored[0].keys()
        if odd:
            raise BadFile(
                f"{file.path.name} and {files[0].path.name} must hold parts of the same tensors, "
                f"{min(odd)!r} is in one of them only; bring the files of one checkpoint together again"
            )
    for name, first in stored[0].items():
        for file, tensors in zip(files, stored, strict=True):
            part = tensors[name]
            if (part.kind, part.shape) != (first.kind, first.shape):
                raise BadFile(
                    f"tensor {name!r} must be alike in all files, it is {first.kind} {first.shape} in the "
                    f"first and {part.kind} {part.shape} in {file.path.name}; bring the files of one "
                    "checkpoint together"
                )
    return {name: [tensors[name] for tensors in stored] for name in stored[0]}


def _table(shards: Mapping[str, Sequence[RawTensor]]) -> str:
    """Meta's name of the embedding table."""
    for name in ("tok_embeddings.weight", "text_model.tok_embeddings.weight"):
        if name in shards and len(shards[name][0].shape) == 2:
            return name
    raise BadFile("the checkpoint lacks the matrix 'tok_embeddings'; download it again")


def _check_count(params: Record, shards: Mapping[str, Sequence[RawTensor]], n_files: int) -> None:
    """Raise BadFile unless there are as many files as the shapes of their parts tell."""
    dim, n_heads = params.integer("dim"), params.integer("n_heads")
    groups = n_heads + 2 * params.integer("n_kv_heads", n_heads)
    for name, whole in (
        ("layers.0.attention.wq.weight", dim),
        ("text_model.layers.0.attention.wq.weight", dim),
        ("layers.0.attention.wqkv.weight", dim // max(n_heads, 1) * groups),
    ):
        if name not in shards or len(shards[name][0].shape) != 2:
            continue
        rows = shards[name][0].shape[0]
        if rows and rows * n_files != whole and whole % rows == 0:
            raise BadFile(
                f"by its shapes the checkpoint was saved in {whole // rows} files, found {n_files}; get all "
                "consolidated.NN.pth, and no others, into one folder"
            )
        return
    raise BadFile("the checkpoint lacks the matrix 'layers.0.wq'; download it again")


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


def read_params(params: Mapping[str, Any], vocab_size: int, int4: bool = False) -> ModelConfig:
    """params.json, and what it leaves out as far as the catalog knows a release of this shape.

    `int4` releases were made for a shorter context.
    """
    config = from_meta(params, vocab_size)
    known = _release(config, int4)
    if known is None:
        return config
    return replace(
        config,
        n_kv_heads=known.n_kv_heads,
        context_length=known.context_length,
        rope_scaling=known.rope_scaling,
    )


def _release(config: ModelConfig, int4: bool) -> ModelConfig | None:
    """The catalog's release of this shape; where there are several, one in 4 bits or none such."""
    alike = ("dim", "n_layers", "n_heads", "head_dim", "ffn_dim", "vocab_size", "norm_eps", "rope_theta")
    found = [
        entry
        for entry in catalog.CATALOG
        if is_dense(entry.config)
        and all(getattr(entry.config, name) == getattr(config, name) for name in alike)
        and (entry.config.rope_scaling is None) == (config.rope_scaling is None)
        and config.n_kv_heads % entry.config.n_kv_heads == 0
    ]
    found.sort(key=lambda entry: entry.weights.startswith("int4") != int4)
    return found[0].config if found else None


def _is_tied(shards: Mapping[str, Sequence[RawTensor]], table: str, tensors: Mapping[str, RawTensor]) -> bool:
    """Whether the output is the embedding table. Meta's files hold it twice then; most differ at once."""
    if "output" not in tensors:
        return True
    tables = [shards[name][0] for name in (table, table.replace("tok_embeddings", "output"))]
    if tables[0].kind != tables[1].kind or tensors["tok_embeddings"].shape != tensors["output"].shape:
        return False
    width = FORMATS[tables[0].kind].block_bytes * min(table.shape[1] for table in tables)
    first_rows = [table.data().reshape(table.shape[0], -1)[:1, :width] for table in tables]
    if not first_rows[0].size or not np.array_equal(first_rows[0], first_rows[1]):
        return False
    return _same_bytes(tensors["tok_embeddings"].data(), tensors["output"].data())


def _same_codes(file: PthFile) -> bool:
    """Whether the output of an int4 release is the embedding table: by their parts, as joining takes long."""
    stored = {tensor.name: tensor for tensor in file.raw_tensors(("I8",))}
    if "output.weight" not in stored:
        return True
    pairs = [tuple(stored.get(f"{name}.{part}") for name in _TABLES) for part in ("scales", "weight")]
    return all(
        a is not None
        and b is not None
        and (a.kind, a.shape) == (b.kind, b.shape)
        and _same_bytes(a.data(), b.data())
        for a, b in pairs
    )


def _same_bytes(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Without an array of truths for all of them."""
    return all(np.array_equal(a[at : at + _CHUNK], b[at : at + _CHUNK]) for at in range(0, a.size, _CHUNK))


def shard_layouts(config: ModelConfig, tensors: Sequence[RawTensor], n_files: int) -> list[Layout]:
    """consolidated.NN.pth for `tensors` (Meta's names; F32, F16 or BF16), shared out over `n_files`.

    Raises BadValue where the heads cannot be shared out.
    """
    # Llama 1 and 2, the only releases with the first paper's rotary base, have columns of the table in each.
    axis = 1 if config.rope_theta == 10000.0 else 0
    shares = [share(tensor.name, config, axis) for tensor in tensors]
    shared = [
        length
        for tensor, how in zip(tensors, shares, strict=True)
        if how.axis is not None
        for length in (how.sections or (tensor.shape[how.axis],))
    ]
    if not 1 <= n_files <= 100 or any(n % n_files for n in (config.n_heads, config.n_kv_heads, *shared)):
        raise BadValue(
            f"the number of files must divide {config.n_kv_heads} key/value heads, the vocabulary of "
            f"{config.vocab_size} and all widths, got {n_files}"
        )
    layouts = []
    for i in range(n_files):
        slices = [
            Slice(tensor.name, tensor)
            if how.axis is None
            else Slice(tensor.name, tensor, how.axis, i, n_files, how.sections)
            for tensor, how in zip(tensors, shares, strict=True)
        ]
        layouts.append(layout(f"consolidated.{i:02d}.pth", slices))
    return layouts
