"""The compiled quantizers: never worse than llama.cpp's, the same bytes everywhere, sound on odd rows."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from golden.rows import DISTRIBUTIONS, KINDS, importances, rows, weighted_rmse

from puna import _native
from puna.core import BadFile
from puna.weights.blocks.formats import n_bytes
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.quantize.encode import ENCODED, encode, encoded, relative

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "encode.json").read_text())
MOST = 1.02  # times llama.cpp's root mean square error


def test_every_format_is_compared() -> None:
    assert set(KINDS) == set(ENCODED)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", ENCODED)
def test_error_beside_llama_cpp(kind: str, name: str) -> None:
    x, w = rows(name), importances()
    plain = dequantize(encode(x, kind), kind, x.shape)
    assert weighted_rmse(x, plain, None) <= MOST * GOLDEN["rmse"][f"{kind} {name}"]
    weighted = dequantize(encode(x, kind, w), kind, x.shape)
    assert weighted_rmse(x, weighted, w) <= MOST * GOLDEN["weighted_rmse"][f"{kind} {name}"]
    assert weighted_rmse(x, weighted, w) < weighted_rmse(x, plain, w)


@pytest.mark.parametrize("kind", ENCODED)
def test_same_bytes_on_every_target_and_number_of_threads(kind: str) -> None:
    x, w = rows("heavy")[:3, :768], importances()[:768]  # no whole number of 16 sub-blocks
    expected = encode(x, kind, w)
    for target in _native.available_targets():
        np.testing.assert_array_equal(_native.encode(kind, x, relative(w), 3, target), expected)


@pytest.mark.parametrize("kind", ENCODED)
def test_odd_rows(kind: str) -> None:
    x = np.zeros((6, 256), np.float32)
    x[1, 17], x[2], x[3], x[4, ::2], x[5, 5] = 1.0, 0.5, 1e-30, -3e4, 6e4
    y = dequantize(encode(x, kind), kind, x.shape)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y[0], 0)
    # relative to the largest value of the row: within half a step of the coarsest format
    for row in (1, 2, 4, 5):
        assert np.abs(y[row] - x[row]).max() <= 0.35 * np.abs(x[row]).max()
    weights = np.zeros(256, np.float32)  # columns that nobody uses
    assert np.isfinite(dequantize(encode(x, kind, weights), kind, x.shape)).all()


def stored(values: np.ndarray) -> RawTensor:
    data = np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(-1)
    return RawTensor("w", "F32", values.shape, partial(np.asarray, data))


@pytest.mark.parametrize("kind", KINDS)
def test_importances_count_in_proportion(kind: str) -> None:
    """Their unit is of no account, and columns that the text never used keep their weights."""
    x, w = rows("gaussian")[:8], importances()
    made = encode(x, kind, w)
    for factor in (2.0**100, 2.0**-100):
        np.testing.assert_array_equal(encode(x, kind, w * np.float32(factor)), made)
    unused = np.arange(len(w)) < len(w) // 2
    left = dequantize(encode(x, kind, np.where(unused, 0, w)), kind, x.shape) - x
    plain = dequantize(encode(x, kind), kind, x.shape) - x
    assert np.square(left[:, unused]).mean() <= 1.1 * np.square(plain[:, unused]).mean()


def test_experts_have_importances_of_their_own() -> None:
    x, w = rows("gaussian").reshape(4, 16, 1024), np.stack([np.roll(importances(), i) for i in range(4)])
    tensor = encoded(stored(x), "Q4_K", w, threads=2)
    assert tensor.kind == "Q4_K"
    each = [encode(x[i], "Q4_K", w[i]) for i in range(4)]
    np.testing.assert_array_equal(tensor.data(), np.concatenate(each))
    assert tensor.data().size == n_bytes("Q4_K", x.shape)


def test_numbers_that_are_none_are_refused() -> None:
    x = rows("gaussian")[:1, :256].copy()
    x[0, 3] = np.nan
    with pytest.raises(BadFile, match="'w' holds values that are infinite or not a number"):
        encoded(stored(x), "Q8_0").data()
