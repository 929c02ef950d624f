"""Bring the files of a model from a source into a folder, hashing every byte on the way.

The folder belongs to the caller, who also decides what becomes of it. What comes back are complete files,
checked against what was known beforehand and flushed to the disk. Here are the shared parts and local files;
pypi.py and hub.py do the same for wheels and for the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.core import BadFile, DownloadFailed
from puna.weights.disk import require_room
from puna.weights.pull.folders import folder_files, local_folder, needed_weights
from puna.weights.pull.sources import LocalSource, choose_mmproj, local_files

# Whether a fetched text file is of a model that may have a vision file.
MaySee = Callable[[Path], bool]

WITHOUT = "pull the text alone with --no-mmproj, and give its vision file with --mmproj when it is run"

# Called with what is going on, the bytes done and, where known, the bytes in all.
Progress = Callable[[str, int, int | None], None]

CHUNK = 1 << 20  # bytes
_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete file in the caller's folder."""

    path: Path
    name: str  # as published, without folders
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a file before it arrives."""

    size: int | None = None
    sha256: str | None = None
    download_size: int | None = None  # of the archive that carries it
    gguf: bool = True  # whether it has to begin as a GGUF file does


def hash_file(path: Path, what: str, progress: Progress) -> str:
    """sha256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        for chunk in read_chunks(file.read):
            digest.update(chunk)
            done += len(chunk)
            progress(what, done, total)
    return digest.hexdigest()


def read_chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The content of a file in pieces, so that memory does not grow with it."""
    while chunk := read(CHUNK):
        yield chunk


class Writer:
    """Appends to a file while hashing it; `finish` flushes it to the disk."""

    def __init__(self, path: Path, what: str, total: int | None, progress: Progress) -> None:
        self._path, self._what, self._total, self._progress = path, what, total, progress
        self._digest = hashlib.sha256()
        self.size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._file.seek(0)
        for chunk in read_chunks(self._file.read):  # what an earlier attempt has left
            self._count(chunk)

    def write(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self._file.write(chunk)
            self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.size += len(chunk)
        self._progress(self._what, self.size, self._total)

    def start_over(self) -> None:
        self._file.truncate(0)
        self._digest, self.size = hashlib.sha256(), 0

    def finish(self, name: str, expected: Expected) -> Fetched:
        """Raises DownloadFailed, and removes the file, unless it is what was expected."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        found = Fetched(self._path, name, self.size, self._digest.hexdigest())
        try:
            check(found, expected)
        except (DownloadFailed, BadFile):
            self._path.unlink()
            raise
        return found

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check(found: Fetched, expected: Expected) -> None:
    if expected.size is not None and found.size != expected.size:
        raise DownloadFailed(
            f"{found.name} should have {expected.size:,} bytes and came with {found.size:,}; pull it again"
        )
    if expected.sha256 is not None and found.sha256 != expected.sha256:
        raise DownloadFailed(
            f"{found.name} should have sha256 {expected.sha256} and came with {found.sha256}: it was "
            "changed or damaged on the way; pull it again, and do not use it if this repeats"
        )
    with found.path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if expected.gguf and magic != _MAGIC:
        raise BadFile(f"{found.name} is not a GGUF file: it begins with {magic!r} instead of {_MAGIC!r}")


def fetch_local(source: LocalSource, work: Path, may_see: MaySee, progress: Progress) -> list[Fetched]:
    """Copy a model file, split set or folder of this machine into `work`, its vision file last."""
    folder = local_folder(source.path)
    paths = _gguf_files(source.path, may_see) if folder is None else _folder_files(folder)
    require_room(work, sum(path.stat().st_size for path in paths), str(source.path))
    fetched = []
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file, Writer(work / path.name, f"copying {path.name}", size, progress) as out:
            out.write(read_chunks(file.read))
            fetched.append(out.finish(path.name, Expected(size, gguf=folder is None)))
    return fetched


def _gguf_files(path: Path, may_see: MaySee) -> list[Path]:
    paths = local_files(path)
    folder = paths[0].parent
    if may_see(paths[0]):
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
        vision = choose_mmproj(names, paths[0].name, str(folder), WITHOUT)
        paths += [] if vision is None else [folder / vision]
    return paths


def _folder_files(folder: Path) -> list[Path]:
    """The checkpoint of a folder in Hugging Face's or Meta's layout."""
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    small, weights = folder_files(names, str(folder))
    weights = needed_weights({name: folder / name for name in small}, weights, str(folder))
    return [folder / name for name in small + weights]
