"""A tensor as a checkpoint holds it, whatever the file format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.weights.blocks.formats import n_bytes


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class RawTensor:
    """`data()` gives the undecoded bytes, uint8 [n_bytes], read or made when asked.

    `release()` gives back the memory that reading took: call it once the bytes are packed or copied. An array
    that `data()` gave stays valid and is read from the file again if touched.
    """

    name: str
    kind: str  # a name of formats.FORMATS
    shape: tuple[int, ...]  # rows first; the last axis is contiguous
    data: Callable[[], NDArray[np.uint8]]
    release: Callable[[], None] = _nothing

    @property
    def n_bytes(self) -> int:
        return n_bytes(self.kind, self.shape)
