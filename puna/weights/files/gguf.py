"""GGUF files: a memory-mapped reader that trusts nothing, and a streaming writer.

Follows the GGUF specification of the ggml project, versions 2 and 3, little endian. Every length, offset,
count and type is checked against the size of the file before it is used; whatever is wrong is a BadFile, or
an Unsupported where the file is sound but not for Puna. What a Llama is, is known to load.py only.

Layout: magic, version, number of tensors, number of metadata entries; the entries (key, type, value); the
tensor table (name, lengths of the axes with the contiguous one first, type, offset); padding; tensor data,
each tensor at a multiple of general.alignment.
"""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, BadValue, DiskFull, Unsupported
from puna.weights.blocks.formats import FORMATS, format_of_type, n_bytes
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.layout import Layout, Slice
from puna.weights.files.mapped import MappedFile, TensorFile
from puna.weights.files.values import Metadata, Value, ValueType, read_value

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Far above any real file (a 405B model has 1,138 tensors), low enough that a hostile count costs little.
_MAX_ENTRIES = 1 << 16
_MAX_AXES = 4  # ggml's
_MAX_NAME = 64  # bytes of a tensor's name, the specification's
_MAX_KEY = (1 << 16) - 1  # bytes of a metadata key, the specification's

_HEAD = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata entries
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# After the number of axes: their lengths, the type, the offset.
_ROWS = tuple(struct.Struct(f"<{n_axes}QIQ") for n_axes in range(_MAX_AXES + 1))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A row of the tensor table."""

    name: str
    kind: str  # a name of formats.FORMATS
    shape: tuple[int, ...]  # rows first: the reverse of the order in the file
    offset: int  # bytes from the start of the file
    n_bytes: int


class GgufFile(TensorFile):
    """One open file. Use as a context manager, or close() it."""

    def __init__(self, file: MappedFile) -> None:
        super().__init__(file)
        cursor = _Cursor(file.bytes)
        self.version, n_tensors, n_entries = cursor.head()
        self.metadata = Metadata(cursor.entries(n_entries))
        self.alignment = alignment_of(self.metadata.encoded)
        self.tensors: Mapping[str, TensorInfo] = cursor.tensors(n_tensors, self.alignment)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map the file and check its tables; no tensor is read. Raises BadFile or Unsupported."""
        path = Path(path)
        try:
            return cls(MappedFile.open(path, _HEAD.size, "a GGUF file"))
        except BadFile as error:
            raise type(error)(f"{path}: {error}") from None

    def place(self, name: str) -> slice:
        info = self.tensors[name]
        return slice(info.offset, info.offset + info.n_bytes)

    def raw_tensors(self) -> Iterator[RawTensor]:
        """All tensors, in the order of the table."""
        for info in self.tensors.values():
            read, release = partial(self.data, info.name), partial(self.release, info.name)
            yield RawTensor(info.name, info.kind, info.shape, read, release)


class _Cursor:
    """Reads the tables from front to back, never beyond the end."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data = data
        self.view = data.data
        self.size = data.size
        self.at = 0

    def take(self, size: int, what: str) -> int:
        """Step over `size` bytes; returns where they start."""
        start = self.at
        if size > self.size - start:
            raise BadFile(
                f"{what} needs {size:,} bytes at byte {start:,} and the file ends at {self.size:,}; "
                "it is truncated or damaged, get it again"
            )
        self.at = start + size
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.view, self.take(_U32.size, what))[0])

    def name(self, limit: int, what: str) -> str:
        length = int(_U64.unpack_from(self.view, self.take(_U64.size, what))[0])
        if length > limit:
            raise BadFile(
                f"{what} should have at most {limit:,} bytes, found {length:,}; the file is damaged"
            )
        start = self.take(length, what)
        raw = bytes(self.view[start : start + length])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise BadFile(f"{what} should be UTF-8 text, found {raw[:32]!r}; the file is damaged") from None

    def head(self) -> tuple[int, int, int]:
        """Version, number of tensors and of metadata entries."""
        magic, version, n_tensors, n_entries = _HEAD.unpack_from(
            self.view, self.take(_HEAD.size, "the header")
        )
        if magic != MAGIC:
            raise BadFile(f"not a GGUF file: expected it to start with {MAGIC!r}, found {magic!r}")
        _check_version(version)
        for what, count in (("tensors", n_tensors), ("metadata entries", n_entries)):
            if count > _MAX_ENTRIES:
                raise BadFile(
                    f"expected at most {_MAX_ENTRIES:,} {what}, found {count:,}; the file is damaged"
                )
        return version, n_tensors, n_entries

    def entries(self, count: int) -> dict[str, Value]:
        entries: dict[str, Value] = {}
        for i in range(count):
            key = self.name(_MAX_KEY, f"the key of metadata entry {i}")
            if key in entries:
                raise BadFile(f"metadata {key!r} stands twice in the file; it is damaged")
            type_number = self.u32(f"metadata {key!r}")
            entries[key] = read_value(self.data, self.at, type_number, key)
            self.take(len(entries[key].payload), key)
        return entries

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        rows = [self._tensor_row(i) for i in range(count)]
        data_start = _padded(self.at, alignment)
        tensors: dict[str, TensorInfo] = {}
        for row in rows:
            if row.name in tensors:
                raise BadFile(f"tensor {row.name!r} stands twice in the file; it is damaged")
            _check_place(row, data_start, alignment, self.size)
            tensors[row.name] = replace(row, offset=data_start + row.offset)
        _check_overlap(tensors.values())
        return tensors

    def _tensor_row(self, i: int) -> TensorInfo:
        """A row of the table as it stands: the offset counts from the start of the data."""
        name = self.name(_MAX_NAME, f"the name of tensor {i}")
        what = f"the table's row of tensor {name!r}"
        n_axes = self.u32(what)
        if n_axes > _MAX_AXES:
            raise BadFile(f"tensor {name!r} should have at most {_MAX_AXES} axes, found {n_axes:,}")
        row = _ROWS[n_axes]
        *lengths, type_number, offset = row.unpack_from(self.view, self.take(row.size, what))
        fmt, shape = format_of_type(type_number, name), tuple(reversed(lengths))
        if shape and shape[-1] % fmt.block_len:
            raise BadFile(
                f"tensor {name!r} of type {fmt.name} needs rows of whole {fmt.block_len}s, found {shape}"
            )
        return TensorInfo(name, fmt.name, shape, offset, n_bytes(fmt.name, shape))


def _check_version(version: int) -> None:
    if version in VERSIONS:
        return
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in (1, *VERSIONS):
        raise Unsupported("the file is big endian; convert it to little endian (gguf-convert-endian)")
    raise Unsupported(f"GGUF version {version} is not supported; supported: 2 and 3; convert the model again")


def alignment_of(metadata: Mapping[str, Value]) -> int:
    """general.alignment, a power of two from 8, to whose multiples tensors are aligned; 32 without it."""
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    if value.type is not ValueType.UINT32:
        raise BadFile(f"general.alignment must be of type UINT32, found {value.type.name}")
    alignment = int(value.decode("general.alignment"))
    if alignment < 8 or alignment & (alignment - 1):
        raise BadFile(f"general.alignment must be a power of two from 8, found {alignment:,}")
    return alignment


def _padded(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


def _check_place(row: TensorInfo, data_start: int, alignment: int, size: int) -> None:
    """Raise BadFile unless the tensor is aligned and lies inside the file of `size` bytes."""
    if row.offset % alignment:
        raise BadFile(
            f"tensor {row.name!r} should lie at a multiple of {alignment} bytes, found {row.offset:,}"
        )
    end = data_start + row.offset + row.n_bytes
    if end > size:
        raise BadFile(
            f"tensor {row.name!r} ends at byte {end:,} and the file ends at {size:,}; "
            "it is truncated or damaged, get it again"
        )


def _check_overlap(tensors: Iterable[TensorInfo]) -> None:
    end, owner = 0, ""
    for info in sorted(tensors, key=lambda info: info.offset):
        if info.n_bytes and info.offset < end:
            raise BadFile(f"tensors {owner!r} and {info.name!r} overlap; the file is damaged")
        end, owner = max(end, info.offset + info.n_bytes), info.name


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    tensors: Sequence[RawTensor],
    version: int = 3,
) -> None:
    """Write a file whose tensors come one at a time from their `data()`, and are released when written.

    The alignment is general.alignment of the metadata, 32 without it. The metadata and tensors of a GgufFile
    give the same file again. The name appears when the file is complete. Raises BadValue for names that the
    format does not allow, DiskFull where there is no room.
    """
    path = Path(path)
    alignment = alignment_of(metadata)
    _check_names(metadata, tensors)
    partial_path = path.with_name(path.name + ".partial")
    try:
        with partial_path.open("wb") as file:
            _write_tables(file, metadata, tensors, version, alignment)
            for tensor in tensors:
                _write_padded(file, tensor, alignment)
        partial_path.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            n_data = sum(tensor.n_bytes for tensor in tensors)
            raise DiskFull(f"{path} needs {n_data:,} bytes and the disk is full; free some space") from error
        raise
    finally:
        partial_path.unlink(missing_ok=True)


def layout(file_name: str, metadata: Mapping[str, Value], tensors: Sequence[Slice]) -> Layout:
    """A file of these tensors in their order, as `write_gguf` writes it. Raises BadValue as that does."""
    _check_names(metadata, tensors)
    alignment = alignment_of(metadata)
    tables = io.BytesIO()
    _write_tables(tables, metadata, tensors, VERSIONS[-1], alignment)
    head = tables.getvalue()
    at, pieces = len(head), []
    for tensor in tensors:
        pieces.append((at, tensor))
        at = _padded(at + tensor.n_bytes, alignment)
    return Layout(file_name, at, tuple(pieces), lambda crcs: [(0, head)])


def _check_names(metadata: Mapping[str, Value], tensors: Sequence[RawTensor | Slice]) -> None:
    for key in metadata:
        if len(key.encode()) > _MAX_KEY:
            raise BadValue(f"a metadata key has at most {_MAX_KEY:,} bytes, got {key[:40]!r}...")
    names = [tensor.name for tensor in tensors]
    for name in names:
        if len(name.encode()) > _MAX_NAME:
            raise BadValue(f"a tensor's name has at most {_MAX_NAME} bytes, got {name!r}")
    assert len(set(names)) == len(names), "two tensors of one name"


def _pack_name(name: str) -> bytes:
    raw = name.encode()
    return _U64.pack(len(raw)) + raw


def _write_tables(
    file: IO[bytes],
    metadata: Mapping[str, Value],
    tensors: Sequence[RawTensor | Slice],
    version: int,
    alignment: int,
) -> None:
    file.write(_HEAD.pack(MAGIC, version, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_pack_name(key) + _U32.pack(value.type))
        file.write(value.payload)
    offset = 0
    for tensor in tensors:
        type_id, n_axes = FORMATS[tensor.kind].type_id, len(tensor.shape)
        file.write(_pack_name(tensor.name) + _U32.pack(n_axes))
        file.write(_ROWS[n_axes].pack(*reversed(tensor.shape), type_id, offset))
        offset = _padded(offset + tensor.n_bytes, alignment)
    file.write(bytes(_padded(file.tell(), alignment) - file.tell()))


def _write_padded(file: IO[bytes], tensor: RawTensor, alignment: int) -> None:
    data = tensor.data()
    assert data.size == tensor.n_bytes, (tensor.name, data.size, tensor.n_bytes)
    file.write(data.data)
    file.write(bytes(_padded(tensor.n_bytes, alignment) - tensor.n_bytes))
    tensor.release()
