"""torch's checkpoint files (.pth, .pt, .bin): a memory-mapped reader that runs nothing, and a writer.

Since torch 1.6 such a file is a zip archive with nothing compressed: NAME/data.pkl, a pickle of a dictionary
of tensors (pickles.py), and NAME/data/KEY, the numbers of each storage. Every offset and length is checked
against the size of the file. What the tensors mean is known to meta.py only. Zip: PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import accumulate
from math import prod
from typing import Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.weights.blocks.formats import FORMATS
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.layout import Layout, Slice
from puna.weights.files.mapped import MappedFile, TensorFile
from puna.weights.files.pickles import PARTS, STORAGES, StorageRef, TensorRef, read_tensors, write_tensors

_LOCAL = struct.Struct("<4s5H3I2H")  # the header before each member's bytes, up to its name
_CENTRAL = struct.Struct("<4s6H3I5H2I")  # a member's row of the table at the end, up to its name
_ZIP_MAGIC, _PICKLE_MAGIC = b"PK\x03\x04", b"\x80"
_ALIGNMENT = 64  # of each storage, as torch writes them
_MAX_AXES = 8


class PthFile(TensorFile):
    """One open file. Use as a context manager, or close() it. `tensors` are in the pickle's order."""

    def __init__(self, file: MappedFile) -> None:
        super().__init__(file)
        self._check_kind(file.bytes[:4].tobytes())
        members = self._members()
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise BadFile(f"a checkpoint of torch has one data.pkl inside, found {len(pickles)}")
        root = pickles[0].removesuffix("data.pkl")
        order = members.get(root + "byteorder")
        if order is not None and file.bytes[order].tobytes() != b"little":
            raise Unsupported("its numbers are big endian; save it again on a little-endian machine")
        self.tensors = read_tensors(file.bytes[members[pickles[0]]].tobytes())
        self._places = {
            name: _place(name, ref, members.get(f"{root}data/{ref.storage.key}"))
            for name, ref in self.tensors.items()
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map the file and check its tables; no tensor is read. Raises BadFile or Unsupported."""
        try:
            return cls(MappedFile.open(path, _LOCAL.size, "a checkpoint of torch"))
        except BadFile as error:
            raise type(error)(f"{path}: {error}") from None

    def place(self, name: str) -> slice:
        return self._places[name]

    def data(self, name: str) -> NDArray[np.uint8]:
        """As TensorFile.data; a copy of a tensor that was saved transposed."""
        raw, ref = super().data(name), self.tensors[name]
        order = _order(ref)
        assert order is not None
        if order == tuple(range(len(order))):
            return raw
        lying = raw.reshape(*(ref.shape[axis] for axis in order), -1)
        back = [order.index(axis) for axis in range(len(order))]
        return np.ascontiguousarray(lying.transpose(*back, len(order))).reshape(-1)

    def raw_tensors(self, parts: Collection[str] = ()) -> Iterator[RawTensor]:
        """All tensors in the order of the pickle; those of the kinds `parts`, which only whoever joins the
        parts of quantized matrices can use, are refused by Unsupported unless they are asked for.
        """
        for name, ref in self.tensors.items():
            if ref.storage.kind in PARTS.values() and ref.storage.kind not in parts:
                raise Unsupported(
                    f"{self.path.name}: tensor {name!r} holds {ref.storage.kind}, and params.json does not "
                    "say that the weights are quantized; get the params.json of the release"
                )
            read, release = partial(self.data, name), partial(self.release, name)
            yield RawTensor(name, ref.storage.kind, ref.shape, read, release)

    def _check_kind(self, magic: bytes) -> None:
        if magic == _ZIP_MAGIC:
            return
        if magic[:1] == _PICKLE_MAGIC:
            raise Unsupported(
                "it was saved by torch before 1.6, as a bare pickle; load it with torch and save it again"
            )
        raise BadFile(f"not a checkpoint of torch: expected it to start with {_ZIP_MAGIC!r}, found {magic!r}")

    def _members(self) -> dict[str, slice]:
        """Where the bytes of each member of the archive are."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error, EOFError):
            raise BadFile("its table at the end is damaged or cut off; get the file again") from None
        members: dict[str, slice] = {}
        for info in infos:
            if info.filename in members:
                raise BadFile(f"the member {info.filename!r:.80} is in it twice; the file is damaged")
            members[info.filename] = self._place(info)
        return members

    def _place(self, info: zipfile.ZipInfo) -> slice:
        name, at = info.filename, info.header_offset
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise Unsupported(f"the member {name!r:.80} is compressed or encrypted; save it again with torch")
        end = at + _LOCAL.size
        if at < 0 or end > self._file.size:
            raise BadFile(f"the member {name!r:.80} begins outside the file; it is damaged, get it again")
        magic, *_, name_length, extra_length = _LOCAL.unpack(self._file.bytes[at:end].tobytes())
        start = end + name_length + extra_length
        if magic != _ZIP_MAGIC or info.file_size < 0 or start + info.file_size > self._file.size:
            raise BadFile(f"the member {name!r:.80} lies outside the file; it is damaged, get it again")
        return slice(start, start + info.file_size)


def _place(name: str, ref: TensorRef, member: slice | None) -> slice:
    """Where the tensor's bytes are, once everything about it is checked."""
    kind = ref.storage.kind
    if kind not in STORAGES.values() and kind not in PARTS.values():
        raise Unsupported(f"tensor {name!r} is a {kind}, and Puna reads {', '.join(STORAGES)}")
    if len(ref.shape) > _MAX_AXES or len(ref.strides) != len(ref.shape):
        raise BadFile(f"tensor {name!r} has the shape {ref.shape!r:.60} and strides {ref.strides!r:.60}")
    if _order(ref) is None:
        raise Unsupported(
            f"tensor {name!r} should be contiguous, with strides {_contiguous(ref.shape)}, found "
            f"{ref.strides}; save it again after .contiguous()"
        )
    width = 1 if kind in PARTS.values() else FORMATS[kind].block_bytes
    size, start = prod(ref.shape) * width, ref.offset * width
    held = 0 if member is None else member.stop - member.start
    if member is None or start + size > min(held, ref.storage.count * width):
        raise BadFile(
            f"tensor {name!r} needs {start + size:,} bytes of the storage {ref.storage.key!r:.40}, which has "
            f"{held:,}; the file is truncated or damaged, get it again"
        )
    return slice(member.start + start, member.start + start + size)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1][: len(shape)]


def _order(ref: TensorRef) -> tuple[int, ...] | None:
    """Axes of a tensor in the order in which its numbers lie, first the outermost; None where there are gaps.

    (0, 1, ...) is contiguous; others come from transposing.
    """
    axes = sorted(range(len(ref.shape)), key=lambda axis: (-ref.strides[axis], axis))
    axes.sort(key=lambda axis: ref.shape[axis] != 1)  # axes of length 1 have any stride
    wanted = _contiguous([ref.shape[axis] for axis in axes])
    pairs = zip(axes, wanted, strict=True)
    if 0 not in ref.shape and any(ref.shape[a] > 1 and ref.strides[a] != stride for a, stride in pairs):
        return None
    moving = [axis for axis in axes if ref.shape[axis] > 1]
    return tuple(range(len(axes))) if moving == sorted(moving) else tuple(axes)


def layout(file_name: str, tensors: Sequence[Slice]) -> Layout:
    """A file of these tensors in their order that torch.load(weights_only=True) reads, mmap=True included."""
    root = file_name.rpartition(".")[0]
    refs = {}
    for i, tensor in enumerate(tensors):
        assert tensor.name not in refs, tensor.name
        storage = StorageRef(str(i), tensor.kind, prod(tensor.shape))
        refs[tensor.name] = TensorRef(storage, 0, tensor.shape, _contiguous(tensor.shape))
    small = [
        (f"{root}/data.pkl", write_tensors(refs)),
        (f"{root}/byteorder", b"little"),
        (f"{root}/version", b"3\n"),
    ]
    at = 0
    frame: list[tuple[int, bytes]] = []
    rows: list[tuple[str, int, int, int | None]] = []  # name, place, size, CRC-32 where known already
    for name, raw in small:
        local = _local_header(name, len(raw), crc32(raw), at)
        rows.append((name, at, len(raw), crc32(raw)))
        frame.append((at, local + raw))
        at += len(local) + len(raw)
    pieces = []
    for i, tensor in enumerate(tensors):
        name = f"{root}/data/{i}"
        rows.append((name, at, tensor.n_bytes, None))
        at += len(_local_header(name, tensor.n_bytes, 0, at))
        pieces.append((at, tensor))
        at += tensor.n_bytes

    def whole_frame(crcs: Sequence[int]) -> list[tuple[int, bytes]]:
        given = iter(crcs)
        table = [(n, place, size, next(given) if crc is None else crc) for n, place, size, crc in rows]
        headers = [(place, _local_header(n, size, crc, place)) for n, place, size, crc in table[len(small) :]]
        return [*frame, *headers, (at, _tables(table, at))]

    size = at + len(_tables([(n, place, size, 0) for n, place, size, _ in rows], at))
    return Layout(file_name, size, tuple(pieces), whole_frame)


def _zip64(*values: int) -> bytes:
    """The extra field of sizes and places in 64 bits."""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def _local_header(name: str, size: int, crc: int, at: int) -> bytes:
    """What stands before a member's bytes at `at`, padded so that these are aligned."""
    raw = name.encode()
    extra = _zip64(size, size)
    padding = -(at + _LOCAL.size + len(raw) + len(extra) + 4) % _ALIGNMENT
    extra += struct.pack("<2s H", b"FB", padding) + b"Z" * padding
    full = 0xFFFFFFFF  # sizes are in the extra field
    header = _LOCAL.pack(_ZIP_MAGIC, 45, 1 << 11, 0, 0, 0x21, crc, full, full, len(raw), len(extra))
    return header + raw + extra


def _tables(rows: Sequence[tuple[str, int, int, int]], at: int) -> bytes:
    """The archive's table of members, to stand at `at`, and its ends in both widths."""
    table = b""
    full = 0xFFFFFFFF
    for name, place, size, crc in rows:
        raw, extra = name.encode(), _zip64(size, size, place)
        numbers = (45, 45, 1 << 11, 0, 0, 0x21, crc, full, full, len(raw), len(extra), 0, 0, 0, 0, full)
        table += _CENTRAL.pack(b"PK\x01\x02", *numbers) + raw + extra
    count, end = len(rows), at + len(table)
    numbers_64 = (44, 45, 45, 0, 0, count, count, len(table), at)
    table += struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", *numbers_64)
    table += struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    short = min(count, 0xFFFF)
    return table + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, short, short, full, full, 0)
