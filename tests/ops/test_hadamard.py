"""The Hadamard transform in every implementation, against the matrix that scipy.linalg.hadamard documents."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from ops.test_native_ops import TARGETS, OpBench, chunk

from puna.core import Batch
from puna.ops.reference import Cache, NumpyOps, Step
from puna.runtime.native import BLOCK_TOKENS

WIDTHS = (16, 32, 256, 8192)


def activations(width: int, n_tokens: int = 3) -> np.ndarray:
    return np.random.default_rng(width).standard_normal((n_tokens, width), np.float32)


def expected(x_TF: np.ndarray) -> np.ndarray:
    """H as the Kronecker power of [[1, 1], [1, -1]], in float64; wide ones axis by axis: the same."""
    n_bits = x_TF.shape[1].bit_length() - 1
    two = np.array([[1.0, 1.0], [1.0, -1.0]])
    if n_bits <= 8:
        return x_TF @ reduce(np.kron, [two] * n_bits) / 2 ** (n_bits / 2)
    cube = x_TF.astype(np.float64).reshape(len(x_TF), *[2] * n_bits)
    for axis in range(1, n_bits + 1):
        cube = np.moveaxis(np.moveaxis(cube, axis, -1) @ two, -1, axis)
    return cube.reshape(x_TF.shape) / 2 ** (n_bits / 2)


def numpy_ops() -> NumpyOps:
    return NumpyOps(Step.of(Batch([chunk(1)]), Cache(1, 1, BLOCK_TOKENS, 1)))


def in_core(x_TF: np.ndarray, target: str) -> np.ndarray:
    n_tokens, width = x_TF.shape
    bench = OpBench(target)
    x, out = bench.buffer(width, x_TF), bench.buffer(width)
    bench.plan.hadamard(x, out)
    return bench.run(out, width, [chunk(n_tokens)])


@pytest.mark.parametrize("width", WIDTHS)
def test_numpy(width: int) -> None:
    x_TF = activations(width)
    got = numpy_ops().hadamard(x_TF)
    np.testing.assert_allclose(got, expected(x_TF), atol=1e-6)
    np.testing.assert_allclose(numpy_ops().hadamard(got), x_TF, atol=1e-6)  # its own inverse


@pytest.mark.parametrize("width", WIDTHS)
def test_core(width: int) -> None:
    """Right on every target, and the same bits."""
    x_TF = activations(width)
    found = [in_core(x_TF, target) for target in TARGETS]
    np.testing.assert_allclose(found[0], expected(x_TF), atol=2e-6)
    for got in found[1:]:
        np.testing.assert_array_equal(got, found[0])


def test_core_refuses_other_widths() -> None:
    bench = OpBench(TARGETS[0])
    for width in (48, 96):
        with pytest.raises(ValueError, match=f"hadamard: {width} columns are no power of two"):
            bench.plan.hadamard(bench.buffer(width), bench.buffer(width))


@pytest.mark.parametrize("width", WIDTHS)
def test_torch(width: int) -> None:
    torch = pytest.importorskip("torch")
    from puna.ops.torch_ops import TorchOps

    x_TF = activations(width)
    ops = TorchOps(None, torch.float32)  # type: ignore[arg-type]
    got = ops.hadamard(torch.from_numpy(x_TF))
    np.testing.assert_allclose(got.numpy(), expected(x_TF), atol=4e-6)
    rounded = ops.hadamard(torch.from_numpy(x_TF).bfloat16())
    assert rounded.dtype == torch.bfloat16
