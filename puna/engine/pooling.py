"""Embeddings: rows of hidden states to one vector.

Shapes: R rows, D columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.core import Pooling


class Pool:
    """The rows of one prompt, one after the other.

    A mean is summed in float64 and in the order of positions, one row at a time: its bits depend neither on
    how the prompt was cut into chunks nor on what else was in the steps.
    """

    def __init__(self, pooling: Pooling, n_columns: int) -> None:
        self._pooling = pooling
        self._sum_D = np.zeros(n_columns)
        self._n_rows = 0

    def add(self, rows_RD: NDArray[np.float32]) -> None:
        """Rows of the next tokens; for "last", of any tokens of which the last one counts."""
        for row_D in rows_RD if self._pooling == "mean" else rows_RD[-1:]:
            if self._pooling == "last":
                self._sum_D[:] = 0
                self._n_rows = 0
            self._sum_D += row_D
            self._n_rows += 1

    def result(self) -> NDArray[np.float32]:
        """The embedding [D], not normalized."""
        return (self._sum_D / self._n_rows).astype(np.float32)


def normalized(embedding_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divided by its Euclidean norm; zeros stay zeros."""
    wide_D = embedding_D.astype(np.float64)
    norm = float(np.sqrt(np.square(wide_D).sum()))
    return (wide_D / norm).astype(np.float32) if norm else embedding_D
