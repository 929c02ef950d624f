"""What the fuzz tests of all readers do with a damaged file."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from puna.core import BadFile


def read_all(
    open_file: Callable[[Path], Any], path: Path, statuses: Counter[str], most: int, case: int
) -> None:
    """Open it and touch every tensor: it opens or is refused, within `most` bytes of memory."""
    tracemalloc.start()
    try:
        with open_file(path) as file:
            for tensor in file.raw_tensors():
                tensor.data().sum()
        statuses["opened"] += 1
    except BadFile:
        statuses["refused"] += 1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < most, case
