"""Where rows of the ledger go while the database is away: a line each, in a folder of the server's disk.

    CRC32 JSON\\n

Every process writes a file of its own, locked while it lives. What a dead one left behind is taken over,
with its lock, by the next that starts. A line counts once its newline and its checksum are there: the torn
end of a file was never acknowledged. POSIX only, as `fcntl` is.
"""

from __future__ import annotations

import fcntl
import logging
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from puna.core import BadValue, WorkFailed
from puna.server.tenants.usage import Usage, from_json

_log = logging.getLogger(__name__)
_MOST_FILES = 256


class Journal:
    """Rows that wait for the database. For one thread; raises OSError where the disk fails."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, or WorkFailed where every file is in use."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file, self._left = self._open()
        self._good = 0  # bytes of the file that hold acknowledged rows
        self._rows: list[Usage] = []
        for descriptor, path in [*self._left, (self._file, self.path)]:
            self._rows += _read(descriptor, path)
        self._good = _size_of_lines(self._file)

    def _open(self) -> tuple[int, list[tuple[int, Path]]]:
        """The first file that nobody uses, and those that dead processes have left."""
        own: int | None = None
        left = []
        for n in range(_MOST_FILES):
            path = self._folder / f"{n:03d}.jsonl"
            if own is not None and not path.exists():
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            if own is None:
                own, self.path = descriptor, path
            else:
                left.append((descriptor, path))
        if own is None:
            raise WorkFailed(f"all {_MOST_FILES} journals in {self._folder} are in use; stop some servers")
        _sync_folder(self._folder)
        return own, left

    @property
    def rows(self) -> Sequence[Usage]:
        """What waits, in the order in which it was written."""
        return self._rows

    def append(self, rows: Sequence[Usage]) -> None:
        """Returns once all of them are on the disk. Raises OSError if that fails; then none of them is."""
        lines = b"".join(map(_line, rows))
        if os.fstat(self._file).st_size != self._good:
            os.ftruncate(self._file, self._good)  # what a failed attempt left
        try:
            view = memoryview(lines)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._good)
            raise
        self._good += len(lines)
        self._rows += rows

    def clear(self) -> None:
        """All rows are in the database. Raises OSError; then nothing is lost, they may be sent again."""
        while self._left:
            descriptor, _ = self._left[0]
            os.ftruncate(descriptor, 0)
            del self._left[0]
            os.close(descriptor)
        os.ftruncate(self._file, 0)
        self._good = 0
        self._rows = []

    def close(self) -> None:
        for descriptor, _ in [*self._left, (self._file, self.path)]:
            os.close(descriptor)
        self._left = []


def _line(row: Usage) -> bytes:
    data = row.to_json().encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _read(descriptor: int, path: Path) -> list[Usage]:
    """The rows of a file. Lines that are damaged are kept beside it, for a person to look at."""
    rows, damaged = [], []
    for line in _content(descriptor).splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # torn while it was written, so nobody was told that it is safe
        checksum, _, data = line.rstrip(b"\n").partition(b" ")
        try:
            if int(checksum, 16) != zlib.crc32(data):
                raise ValueError("wrong checksum")
            rows.append(from_json(data.decode()))
        except (ValueError, KeyError, TypeError, BadValue):
            damaged.append(line)
    if damaged:
        copy = path.with_suffix(".damaged")
        with copy.open("ab") as file:
            file.writelines(damaged)
            os.fsync(file.fileno())
        _log.error("%d damaged lines of %s were put aside in %s", len(damaged), path, copy)
    return rows


def _size_of_lines(descriptor: int) -> int:
    return _content(descriptor).rfind(b"\n") + 1


def _content(descriptor: int) -> bytes:
    pieces = []
    offset = 0
    while piece := os.pread(descriptor, 1 << 20, offset):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
