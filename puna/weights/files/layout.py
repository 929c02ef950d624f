"""A file to be written, as places for bytes: parts of tensors at known offsets, and a frame around them.

Every format is laid out before the first byte is written. So files can be filled tensor by tensor, in any
order, and an interrupted writer knows where to go on. What stands in the frame is the formats' own business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from puna.weights.blocks.formats import FORMATS
from puna.weights.blocks.tensor import RawTensor


@dataclass(frozen=True, slots=True)
class Slice:
    """The `index`th of `count` equal parts of a tensor along `axis`, to be stored as `name`.

    Where the tensor is several below each other, `sections` are their rows, and the part has one of each.
    """

    name: str
    source: RawTensor
    axis: int = 0
    index: int = 0
    count: int = 1
    sections: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        return self.source.kind

    @property
    def shape(self) -> tuple[int, ...]:
        whole = self.source.shape
        return tuple(n // self.count if i == self.axis else n for i, n in enumerate(whole))

    @property
    def n_bytes(self) -> int:
        return self.source.n_bytes // self.count

    def of(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """This part of the source's data(), contiguous uint8 [n_bytes]; a view where it can be one."""
        if self.count == 1:
            return np.ascontiguousarray(data).reshape(-1)
        assert FORMATS[self.kind].block_len == 1, "only plain numbers are cut"
        values = data.reshape(-1).view(FORMATS[self.kind].layout).reshape(self.source.shape)
        rows = self.sections or (self.source.shape[self.axis],)
        ends = np.cumsum(rows)
        places = [
            slice(end - n + self.index * (n // self.count), end - n + (self.index + 1) * (n // self.count))
            for n, end in zip(rows, ends, strict=True)
        ]
        parts = [values[at] if self.axis == 0 else values[:, at] for at in places]
        part = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


# What stands around the tensors: places and bytes, from the CRC-32 of each piece, which some formats state.
Frame = Callable[[Sequence[int]], Iterable[tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class Layout:
    file_name: str
    size: int  # bytes of the whole file; what neither a piece nor the frame covers is zero
    pieces: tuple[tuple[int, Slice], ...]  # offsets from the start of the file
    frame: Frame


def write_piece(file: IO[bytes], offset: int, piece: Slice, data: NDArray[np.uint8]) -> int:
    """Write a piece of a tensor whose data() is `data` -> the CRC-32 of its bytes."""
    part = piece.of(data)
    assert part.size == piece.n_bytes, (piece.name, part.size, piece.n_bytes)
    file.seek(offset)
    file.write(part.data)
    return crc32(part.data)


def write_frame(file: IO[bytes], layout: Layout, crcs: Sequence[int]) -> None:
    for offset, raw in layout.frame(crcs):
        file.seek(offset)
        file.write(raw)


def write_file(folder: str | os.PathLike[str], layout: Layout) -> Path:
    """Write a whole file at once, tensor by tensor -> its path. No resuming, no checks: see convert.py."""
    path = Path(folder) / layout.file_name
    with path.open("wb") as file:
        file.truncate(layout.size)
        crcs = []
        for offset, piece in layout.pieces:
            crcs.append(write_piece(file, offset, piece, piece.source.data()))
            piece.source.release()
        write_frame(file, layout, crcs)
    return path
