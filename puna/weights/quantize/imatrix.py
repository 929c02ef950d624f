"""Importance matrices: how strongly each column of a matrix is used, in GGUF files like llama.cpp's.

For every matrix the file has the sums of squared inputs per column (`NAME.in_sum2`, [E, X] with a row for
each expert) and how many tokens were summed (`NAME.counts`, [E, 1]); its general.type is "imatrix".

Shapes: E experts (1 for plain matrices), X columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile
from puna.model import names
from puna.model.config import ModelConfig
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.files.gguf import GgufFile, write_gguf
from puna.weights.files.values import Value, ValueType

Floats = NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True, slots=True)
class Observed:
    """Squared inputs of one matrix, summed over tokens."""

    sums_EX: NDArray[np.float64]
    counts_E: NDArray[np.int64]  # tokens

    @property
    def mean_squares(self) -> Floats:
        """[X], or [E, X] for experts. One that no token went to has the mean of the others."""
        sums_EX = self.sums_EX.astype(np.float32).astype(np.float64)  # as a file holds them: equal from both
        means_EX = sums_EX / np.maximum(self.counts_E, 1)[:, None]
        unseen_E = self.counts_E == 0
        means_EX[unseen_E] = means_EX[~unseen_E].mean(axis=0) if not unseen_E.all() else 1.0
        return means_EX.astype(np.float32).squeeze(0) if len(means_EX) == 1 else means_EX.astype(np.float32)


def write_imatrix(
    path: Path, observed: Mapping[str, Observed], *, dataset: str, n_chunks: int, chunk_size: int
) -> None:
    """Store what was observed, by our names, in `n_chunks` pieces of `chunk_size` tokens of a text."""
    tensors = []
    for name, found in observed.items():
        foreign = names.to_gguf(name)
        tensors.append(_tensor(foreign + _SUMS, found.sums_EX))
        tensors.append(_tensor(foreign + _COUNTS, found.counts_E[:, None]))
    metadata = {
        "general.type": Value.of(ValueType.STRING, "imatrix"),
        "imatrix.datasets": Value.array(ValueType.STRING, [dataset]),
        "imatrix.chunk_count": Value.of(ValueType.UINT32, n_chunks),
        "imatrix.chunk_size": Value.of(ValueType.UINT32, chunk_size),
    }
    write_gguf(path, metadata, tensors)


def _tensor(name: str, values: NDArray[np.float64] | NDArray[np.int64]) -> RawTensor:
    data = np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(-1)
    return RawTensor(name, "F32", values.shape, partial(np.asarray, data))


def is_imatrix(path: Path) -> bool:
    """Whether a file is a GGUF file, which a text is not."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read_imatrix(path: Path, config: ModelConfig) -> dict[str, Floats]:
    """Mean squares by our names, [X] or [E, X]; BadFile where they are not of a model of this shape."""
    with GgufFile.open(path) as file:
        if file.metadata.get("general.type") != "imatrix":
            raise BadFile(
                f"{path} is a GGUF file without importances (general.type is not 'imatrix'); give another"
            )
        stored = {t.name: dequantize(t.data(), t.kind, t.shape) for t in file.raw_tensors()}
    shapes = dict(names.shapes(config))
    found: dict[str, Floats] = {}
    for name, sums in stored.items():
        if not name.endswith(_SUMS):
            continue
        ours = names.from_gguf(name.removesuffix(_SUMS))
        counts = stored.get(name.removesuffix(_SUMS) + _COUNTS)
        if ours is None or ours not in shapes or counts is None:
            raise BadFile(
                f"{path}: {name!r} is of no matrix of this model; make the importances with the same model"
            )
        found[ours] = _means(path, name, sums, counts, shapes[ours])
    if not found:
        raise BadFile(f"{path} has no {_SUMS} tensors; make the importances again")
    return found


def _means(path: Path, name: str, sums: Floats, counts: Floats, shape: tuple[int, ...]) -> Floats:
    experts = shape[0] if len(shape) == 3 else 1
    if sums.size != experts * shape[-1] or counts.size != experts:
        raise BadFile(
            f"{path}: {name!r} has shape {sums.shape}, and the matrix needs {(experts, shape[-1])}; make the "
            "importances with the same model"
        )
    if not (
        np.isfinite(sums).all() and np.isfinite(counts).all() and (sums >= 0).all() and (counts >= 0).all()
    ):
        raise BadFile(
            f"{path}: {name!r} holds values that are no sums of squares; make the importances again"
        )
    squares = sums.reshape(experts, -1).astype(np.float64)
    return Observed(squares, counts.reshape(-1).astype(np.int64)).mean_squares
