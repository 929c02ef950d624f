"""Safetensors files: a memory-mapped reader that trusts nothing, the index of sharded ones, and a writer.

Follows the format's description (README of huggingface/safetensors). Every length, offset and type is checked
against the size of the file before it is used. What the tensors mean is known to hf.py only.

Layout: 8 bytes with the length of the header (little endian); the header, a JSON object of
{name: {"dtype", "shape", "data_offsets": [begin, end]}} and "__metadata__" of strings; the data, to whose
start the offsets count, without holes or overlaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.layout import Layout, Slice
from puna.weights.files.mapped import MappedFile, TensorFile

# Bits of a value of each dtype of the format (safetensors 0.8, enum Dtype).
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
RUNNABLE = ("F32", "F16", "BF16")  # dtypes that are also kinds of formats.FORMATS

_LENGTH = 8  # bytes before the header
_MAX_HEADER = 100_000_000  # bytes, the reference implementation's
_MAX_AXES = 8
_MAX_COUNT = 1 << 62  # values; far above any file, and small enough for exact products
_ALIGNMENT = 8  # of the data, by padding the header with spaces


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    dtype: str  # a name of DTYPE_BITS
    shape: tuple[int, ...]  # rows first
    offset: int  # bytes from the start of the file
    n_bytes: int


class SafetensorsFile(TensorFile):
    """One open file. Use as a context manager, or close() it. `metadata` is the header's "__metadata__"."""

    def __init__(self, file: MappedFile) -> None:
        super().__init__(file)
        header, start = _header(file.bytes)
        self.metadata = _metadata(header.pop("__metadata__", {}))
        self.tensors = {name: _info(name, entry, start, file.size) for name, entry in header.items()}
        _check_cover(self.tensors.values(), start, file.size)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map the file and check its header; no tensor is read. Raises BadFile or Unsupported."""
        try:
            return cls(MappedFile.open(path, _LENGTH + 2, "a safetensors file"))
        except BadFile as error:
            raise type(error)(f"{path}: {error}") from None

    def place(self, name: str) -> slice:
        info = self.tensors[name]
        return slice(info.offset, info.offset + info.n_bytes)

    def raw_tensors(self, parts: Collection[str] = ()) -> Iterator[RawTensor]:
        """All tensors in the order of the header; raises Unsupported for a dtype that Puna does not run.

        Those of `parts` are also given, with the dtype for a kind, for whoever makes tensors of them.
        """
        for info in self.tensors.values():
            if info.dtype not in RUNNABLE and info.dtype not in parts:
                raise Unsupported(
                    f"{self.path}: tensor {info.name!r} holds {info.dtype}, and Puna reads "
                    f"{', '.join(RUNNABLE)}; use the release in BF16, or a GGUF file of the model"
                )
            read, release = partial(self.data, info.name), partial(self.release, info.name)
            yield RawTensor(info.name, info.dtype, info.shape, read, release)


def _header(data: NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    """The header's entries, and where the data begins."""
    length = int(data[:_LENGTH].view("<u8")[0])
    if length > min(_MAX_HEADER, data.size - _LENGTH):
        raise BadFile(
            f"the header should have at most {min(_MAX_HEADER, data.size - _LENGTH):,} bytes, it states "
            f"{length:,}; this is no safetensors file, or it is truncated: get it again"
        )
    header = parse_json(data[_LENGTH : _LENGTH + length].tobytes(), "the header")
    return header, _LENGTH + length


def parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object that names nothing twice; BadFile otherwise. `what` begins the message."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise BadFile(f"{what} names {twice!r} twice; it is damaged, get it again")
        return found

    try:
        parsed = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadFile(
            f"{what} must be JSON, and is not ({error!s:.80}); it is damaged, get it again"
        ) from None
    if not isinstance(parsed, dict):
        raise BadFile(f"{what} must be a JSON object, found a {type(parsed).__name__}; get it again")
    return parsed


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds; BadFile, without the path, otherwise."""
    try:
        return parse_json(path.read_bytes(), path.name)
    except OSError as error:
        raise BadFile(f"{path.name} cannot be read: {error.strerror or error}") from None


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise BadFile("__metadata__ of the header must map strings to strings; the file is damaged")
    return found


def _info(name: str, entry: Any, start: int, size: int) -> TensorInfo:
    """An entry of the header, checked but for its neighbours; `start` is where the data begins."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadFile(
            f"tensor {name!r} must have dtype, shape and data_offsets in the header, found {entry!r:.60}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise Unsupported(f"tensor {name!r} has the dtype {dtype!r:.40}, known are {', '.join(DTYPE_BITS)}")
    if not _are_counts(shape) or len(shape) > _MAX_AXES:
        raise BadFile(f"the shape of tensor {name!r} must be at most {_MAX_AXES} counts, found {shape!r:.60}")
    if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - start:
        raise BadFile(
            f"tensor {name!r} must lie within the {size - start:,} bytes of data, found {offsets!r:.60}; "
            "the file is truncated or damaged, get it again"
        )
    n_bits, n_bytes = prod(shape) * DTYPE_BITS[dtype], offsets[1] - offsets[0]
    if n_bits != 8 * n_bytes:
        raise BadFile(
            f"tensor {name!r} of shape {shape} as {dtype} takes {-(-n_bits // 8):,} bytes, the header gives "
            f"it {n_bytes:,}; the file is damaged, get it again"
        )
    return TensorInfo(name, dtype, tuple(shape), start + offsets[0], n_bytes)


def _are_counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < _MAX_COUNT for n in found)


def _check_cover(infos: Any, start: int, size: int) -> None:
    """Raise BadFile unless the tensors cover the data without holes or overlaps."""
    at = start
    for info in sorted(infos, key=lambda info: (info.offset, info.n_bytes)):
        if info.offset != at:
            raise BadFile(
                f"tensor {info.name!r} should begin at byte {at:,}, where the one before it ends, found "
                f"{info.offset:,}; the file is damaged, get it again"
            )
        at += info.n_bytes
    if at != size:
        raise BadFile(f"the data should end at byte {at:,}, the file ends at {size:,}; get it again")


def open_sharded(index_path: Path) -> list[SafetensorsFile]:
    """All files of a model.safetensors.index.json, in the order of their names.

    Raises BadFile for files that are missing, and for tensors that are elsewhere than the index says.
    """
    placed = read_json(index_path).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise BadFile(f"{index_path.name} must have a weight_map of tensor names to file names")
    names = sorted(set(placed.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise BadFile(f"{index_path.name} places tensors in {name!r}, which is no file beside it")
    missing = [name for name in names if not (index_path.parent / name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BadFile(
            f"{index_path.name} names {len(names)} files, and {', '.join(missing[:3])}{more} cannot be found "
            "beside it; get the missing ones too"
        )
    files = [SafetensorsFile.open(index_path.parent / name) for name in names]
    found = {name: file.path.name for file in files for name in file.tensors}
    for name in placed.keys() | found.keys():
        if placed.get(name) != found.get(name):
            raise BadFile(
                f"{index_path.name} places tensor {name!r} in {placed.get(name, 'no file')}, it is found in "
                f"{found.get(name, 'none')}; bring the files of one model together again"
            )
    if sum(len(file.tensors) for file in files) != len(found):
        raise BadFile(f"a tensor of {index_path.name} is in two files; download the checkpoint again")
    return files


def layout(file_name: str, tensors: Sequence[Slice]) -> Layout:
    """A file of these tensors in their order, with the metadata by which transformers knows its own files."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, end = [], 0
    for tensor in tensors:
        assert tensor.kind in RUNNABLE
        assert tensor.name not in header
        places.append(end)
        end += tensor.n_bytes
        entry = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": [places[-1], end]}
        header[tensor.name] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    head = len(text).to_bytes(_LENGTH, "little") + text
    pieces = tuple((len(head) + place, tensor) for place, tensor in zip(places, tensors, strict=True))
    return Layout(file_name, len(head) + end, pieces, lambda crcs: [(0, head)])


def sharded_layouts(tensors: Sequence[Slice], shard_bytes: int) -> tuple[list[Layout], dict[str, Any] | None]:
    """The files that hold `tensors`, each of at most `shard_bytes` where its tensors allow, and their index.

    One file has no index (None), as transformers' save_pretrained writes it.
    """
    groups: list[list[Slice]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.n_bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.n_bytes
    if len(groups) == 1:
        return [layout("model.safetensors", groups[0])], None
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    placed = {tensor.name: name for name, group in zip(names, groups, strict=True) for tensor in group}
    total = sum(tensor.n_bytes for tensor in tensors)
    layouts = [layout(name, group) for name, group in zip(names, groups, strict=True)]
    return layouts, {"metadata": {"total_size": total}, "weight_map": placed}
