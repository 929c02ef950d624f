"""A file as memory: mapped read-only, its pages given back when they are done with. Knows no format."""

from __future__ import annotations

import mmap
import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile

_LARGE_PAGE = 1 << 21


class MappedFile:
    """One open file. Use as a context manager, or close() it.

    A mapped file must not be shortened while it is open: reading what is gone ends the process (SIGBUS).
    """

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self.size = len(mapped)  # bytes
        self._map = mapped
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(mapped, np.uint8)

    @classmethod
    def open(cls, path: str | os.PathLike[str], least: int, what: str) -> Self:
        """Map a file. Raises BadFile, without the path, unless it is a regular file of `least` bytes (1 or
        more); `what` says in that message what it should have been ("a GGUF file").
        """
        path = Path(path)
        try:
            status = path.stat()
            # Pipes and devices have no size to check against (and may block); zero bytes cannot be mapped.
            if not stat.S_ISREG(status.st_mode) or status.st_size < least:
                raise BadFile(f"not {what}: expected a regular file of at least {least} bytes")
            with path.open("rb") as file:
                return cls(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise BadFile(f"cannot be read: {error.strerror or error}") from error

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All of the file, uint8 [size], read-only; ValueError once it is closed."""
        if self._bytes is None:
            raise ValueError(f"{self.path} was closed")
        return self._bytes

    def release(self, start: int, end: int) -> None:
        """Give the resident pages of bytes `start` to `end` back; they are read again if touched.

        So are those around them: a fault maps more of the file than was asked for, up to a large page.
        """
        start = start // _LARGE_PAGE * _LARGE_PAGE
        end = min(self.size, -(-end // _LARGE_PAGE) * _LARGE_PAGE)
        if hasattr(mmap, "MADV_DONTNEED") and end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def close(self) -> None:
        """No further `bytes`; the mapping goes when the last array over it does."""
        self._bytes = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class TensorFile(ABC):
    """A mapped file of named tensors, of whatever format. Use as a context manager, or close() it."""

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self._file = file

    @abstractmethod
    def place(self, name: str) -> slice:
        """Where the bytes of a tensor lie in the file; KeyError for a name that it does not have."""

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, uint8 [n_bytes]: a read-only view of the file."""
        return self._file.bytes[self.place(name)]

    def release(self, name: str) -> None:
        """Give the resident pages of a tensor, and those around it, back; they are read again if touched."""
        place = self.place(name)
        self._file.release(place.start, place.stop)

    def close(self) -> None:
        """No further data(); the mapping goes when the last array over it does."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
