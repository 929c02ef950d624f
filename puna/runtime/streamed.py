"""A forward pass of any checkpoint in bounded memory: matrices are decoded when they are multiplied.

For work that needs the numbers of a file and no speed: measuring importances, comparing two files. A step
takes many tokens, so that decoding is a small part of it. It is the numpy executor over weights that decode
themselves.

Shapes: T tokens, D columns, E rows of a matrix, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch, Chunk
from puna.runtime.reference import ReferenceExecutor
from puna.weights.blocks.formats import n_bytes
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.load import Checkpoint
from puna.weights.quantize.imatrix import Observed

Floats = NDArray[np.float32]
Saw = Callable[[RawTensor, int, Floats], None]  # a tensor (an expert of it) multiplies these rows [T, D]

_CHUNK = 1 << 23  # values decoded at a time
_BLOCK = 16  # positions of a cache block


class StreamedMatrix:
    """What the numpy ops do with a matrix [E, D], or with one [E, D] for each expert, without holding it."""

    __array_ufunc__ = None  # x @ self is ours

    def __init__(self, tensor: RawTensor, saw: Saw | None, expert: int = 0) -> None:
        self._tensor, self._saw, self._expert = tensor, saw, expert

    @property
    def T(self) -> StreamedMatrix:
        return self

    def __len__(self) -> int:
        return self._tensor.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """The rows of token ids, or the matrix of one expert."""
        if len(self._tensor.shape) == 3:
            return StreamedMatrix(self._tensor, self._saw, int(index))
        row = n_bytes(self._tensor.kind, self._tensor.shape[1:])
        rows = self._tensor.data().reshape(-1, row)[index]
        return dequantize(
            np.ascontiguousarray(rows).reshape(-1), self._tensor.kind, (len(rows), self._tensor.shape[1])
        )

    def __rmatmul__(self, x_TD: Floats) -> Floats:
        n_rows, width = self._tensor.shape[-2:]
        y_TE = np.empty((len(x_TD), n_rows), np.float32)
        if not len(x_TD):
            return y_TE
        if self._saw is not None:
            self._saw(self._tensor, self._expert, x_TD)
        row, first = n_bytes(self._tensor.kind, (width,)), self._expert * n_rows
        data, step = self._tensor.data(), max(1, _CHUNK // width)
        for at in range(0, n_rows, step):
            end = min(n_rows, at + step)
            part = data[(first + at) * row : (first + end) * row]
            y_TE[:, at:end] = x_TD @ dequantize(part, self._tensor.kind, (end - at, width)).T
        self._tensor.release()
        return y_TE


def _executor(checkpoint: Checkpoint, n_sequences: int, length: int, saw: Saw | None) -> ReferenceExecutor:
    weights: dict[str, Any] = {}
    for name, tensor in checkpoint.tensors.items():
        is_matrix = len(tensor.shape) > 1
        weights[name] = (
            StreamedMatrix(tensor, saw) if is_matrix else dequantize(tensor.data(), tensor.kind, tensor.shape)
        )
    blocks = -(-length // _BLOCK) * n_sequences
    return ReferenceExecutor(
        checkpoint.config, weights, n_blocks=blocks, block_size=_BLOCK, context_length=length
    )


def _batch(windows: Sequence[Sequence[int]], length: int, n_logits: int) -> Batch:
    each = -(-length // _BLOCK)
    return Batch(
        [
            Chunk(ids, 0, range(i * each, (i + 1) * each), min(n_logits, len(ids)))
            for i, ids in enumerate(windows)
        ]
    )


WINDOW = 512  # tokens that see each other while importances are measured, BOS included: llama.cpp's default
_STEP = 2048  # tokens multiplied at a time


def observe(
    checkpoint: Checkpoint,
    ids: Sequence[int],
    bos: int | None,
    progress: Callable[[str, int, int | None], None],
) -> dict[str, Observed]:
    """Run the model over a text, in windows, and sum the squares of what each of its matrices multiplies.

    By our names. The output matrix is left out, as llama.cpp does, and the embeddings multiply nothing.
    """
    head = [] if bos is None else [bos]
    size = min(WINDOW, checkpoint.config.context_length) - len(head)
    windows = [[*head, *ids[at : at + size]] for at in range(0, len(ids), size)]
    at_once = max(1, _STEP // WINDOW)
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, NDArray[np.int64]] = {}

    def saw(tensor: RawTensor, expert: int, x_TD: Floats) -> None:
        n_experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        sums.setdefault(tensor.name, np.zeros((n_experts, x_TD.shape[1])))
        counts.setdefault(tensor.name, np.zeros(n_experts, np.int64))
        sums[tensor.name][expert] += np.square(x_TD).sum(axis=0, dtype=np.float64)
        counts[tensor.name][expert] += len(x_TD)

    executor = _executor(checkpoint, at_once, size + len(head), saw)
    for at in range(0, len(windows), at_once):
        progress("measuring importances", at, len(windows))
        executor.step(_batch(windows[at : at + at_once], size + len(head), 0))
    progress("measuring importances", len(windows), len(windows))
    return {name: Observed(total, counts[name]) for name, total in sums.items()}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near the distributions of two checkpoints are, over every next token of a sequence."""

    max_difference: float  # of log-probabilities, over the whole vocabulary, in nats
    mean_difference: float  # likewise; each token weighed by its probability in the first
    same_choice: float  # part of positions with the same most likely token
    n_positions: int


def log_probabilities(checkpoint: Checkpoint, ids: Sequence[int]) -> Floats:
    """Of every next token of a sequence -> [T, V]."""
    executor = _executor(checkpoint, 1, len(ids), None)
    logits_TV = executor.step(_batch([ids], len(ids), len(ids)))
    shifted_TV = (logits_TV - logits_TV.max(axis=1, keepdims=True)).astype(np.float64)
    result: Floats = (shifted_TV - np.log(np.exp(shifted_TV).sum(axis=1, keepdims=True))).astype(np.float32)
    return result


def agreement(first: Checkpoint, second: Checkpoint, ids: Sequence[int]) -> Agreement:
    """Forward passes of both over `ids`. Infinite where a checkpoint gives numbers that are not finite."""
    a_TV, b_TV = log_probabilities(first, ids), log_probabilities(second, ids)
    if not np.isfinite(b_TV).all():
        return Agreement(np.inf, np.inf, 0.0, len(ids))
    difference_TV = np.abs(a_TV - b_TV)
    mean = float((np.exp(a_TV) * difference_TV).sum(axis=1).mean())
    same = float((a_TV.argmax(axis=1) == b_TV.argmax(axis=1)).mean())
    return Agreement(float(difference_TV.max()), mean, same, len(ids))
