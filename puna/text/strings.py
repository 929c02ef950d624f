"""Arrays of 50,000 to 300,000 strings, as vocabularies are: joined, with no object for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class _Joined(Protocol):
    """Metadata that keeps its arrays as the file has them (weights.values.Metadata)."""

    def joined(self, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]: ...


@dataclass(frozen=True, slots=True)
class Strings:
    utf8: NDArray[np.uint8]  # of all strings, one after the other
    starts: NDArray[np.int64]  # of each string in it, and the end of the last

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        encoded = [string.encode() for string in strings]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    @classmethod
    def in_metadata(cls, metadata: Mapping[str, Any], key: str) -> Strings:
        """Raises KeyError."""
        return cls(*metadata.joined(key)) if isinstance(metadata, _Joined) else cls.of(metadata[key])

    def __len__(self) -> int:
        return self.starts.size - 1

    def __getitem__(self, i: int) -> str:
        return self.utf8[self.starts[i] : self.starts[i + 1]].tobytes().decode()
