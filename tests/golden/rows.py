"""Seeded rows to be quantized, from the raw output of a Philox generator, which numpy keeps stable."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
DISTRIBUTIONS = ("gaussian", "heavy", "shifted")
N_ROWS, N_COLS = 64, 1024


def rows(name: str) -> NDArray[np.float32]:
    """[N_ROWS, N_COLS]: normal; Student's t with 4 degrees of freedom; normal with a mean for each row."""
    rng = np.random.Generator(np.random.Philox(key=DISTRIBUTIONS.index(name)))
    normal = _normal(rng, (N_ROWS, N_COLS))
    if name == "heavy":
        chi2 = sum(_normal(rng, (N_ROWS, N_COLS)) ** 2 for _ in range(4))
        normal = normal / np.sqrt(chi2 / 4)
    if name == "shifted":
        normal = normal + _normal(rng, (N_ROWS, 1))
    return np.ascontiguousarray(0.02 * normal, dtype=np.float32)


def importances() -> NDArray[np.float32]:
    """[N_COLS], spread over some two orders of magnitude, as the activations of a model are."""
    rng = np.random.Generator(np.random.Philox(key=99))
    return np.exp(_normal(rng, (N_COLS,))).astype(np.float32)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Box and Muller's method over raw bits."""
    bits = rng.bit_generator.random_raw(2 * int(np.prod(shape))).reshape(2, *shape)
    u, v = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)


def weighted_rmse(
    x: NDArray[np.float32], y: NDArray[np.float32], weights: NDArray[np.float32] | None
) -> float:
    """Root mean square of x - y, columns weighted."""
    w = np.ones(x.shape[1]) if weights is None else weights.astype(np.float64)
    return float(np.sqrt(np.sum(w * (x.astype(np.float64) - y) ** 2) / (len(x) * w.sum())))
