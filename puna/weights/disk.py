"""Locks between processes, writes that survive a power cut, the meaning of disk errors. POSIX only."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from puna.core import DiskFull, WorkFailed

MAKE_ROOM = "free some space, or set PUNA_HOME to a folder on a larger disk"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock; `waiting` is called once if another process has it.

    The kernel drops the lock when its holder dies. The file stays: removing it would let two processes lock
    two files of the same name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file so that a reader sees the old content or the new one, never a part.

    Nothing else in the folder is touched, and nothing is left there where it fails.
    """
    data = text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    # not by tempfile, whose files only their owner may read: a store can be shared
    temporary = path.with_name(f".puna-{token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # it is there only if something failed
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_bytes(folder: Path) -> int:
    """Free on the file system that holds `folder`, or will hold it."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_room(folder: Path, n_bytes: int, what: str) -> None:
    """DiskFull unless the file system of `folder` has `n_bytes` free."""
    free = free_bytes(folder)
    if free < n_bytes:
        raise DiskFull(
            f"{what} needs {n_bytes:,} bytes and the disk of the store has {free:,} free; {MAKE_ROOM}"
        )


@contextmanager
def disk_errors(home: Path, needed: int | None) -> Iterator[None]:
    """Turn a full disk into DiskFull and a forbidden store into WorkFailed; `needed` is in bytes if known."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            wanted = f"{needed:,} bytes were needed" if needed else "more was needed"
            raise DiskFull(f"{home} is full: {wanted}, {free_bytes(home):,} are free; {MAKE_ROOM}") from error
        path = Path(error.filename or home)
        if error.errno in _FORBIDDEN and (home in (path, *path.parents) or path in home.parents):
            raise WorkFailed(
                f"cannot write to {path} ({error.strerror}); set PUNA_HOME to a folder of yours"
            ) from error
        raise
