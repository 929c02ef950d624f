"""Files that are what they seem: in a folder that others may write to, somebody can plant a link."""

from __future__ import annotations

import os
import stat
from errno import ELOOP
from pathlib import Path
from typing import BinaryIO


def is_plain(path: Path) -> bool:
    """Whether it is a file, and no link, pipe or folder; nor one that has a second name elsewhere."""
    try:
        return _is_plain(path.lstat())
    except OSError:
        return False


def open_plain(path: Path) -> BinaryIO:
    """Open a file to read it. Raises OSError, as well for what is_plain() denies."""
    found = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for its writer
    if not _is_plain(os.fstat(found)):
        os.close(found)
        raise OSError(ELOOP, "not a file with one name", str(path))
    return open(found, "rb")


def _is_plain(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1
