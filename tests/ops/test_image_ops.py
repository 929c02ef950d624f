"""The compiled ops of image encoders (csrc/image_ops.h) against numpy's, on every target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from puna import _native
from puna.model.vision import TileRope, Tiles
from puna.model.vision_config import Llama4VisionConfig
from puna.ops.cases import error
from puna.ops.reference_vision import NumpyVisionOps
from puna.runtime.native import pack_weight
from puna.runtime.native_vision import NativeVisionOps
from puna.weights.blocks.quant import dequantize, random_blocks

TARGETS = _native.available_targets()
HEADS, HEAD = 3, 20  # heads of 20 columns are widened to 32
ROWS, GROUPS = 2 * 75, 2


def plan(target: str, threads: int = 2, cache: str = "f32") -> Any:
    return _native.Plan(target, threads, 8, 8, cache, 1, 1, 2, 32)


def picture(padding: int) -> Tiles:
    """Two groups of rows, of each the last `padding` ones and one more fill it up."""
    rng = np.random.default_rng(0)
    padding_X = np.zeros((GROUPS, ROWS // GROUPS), np.bool_)
    if padding:
        padding_X[:, -padding:] = padding_X[:, 7] = True
    patch_of_X = np.tile(np.append(np.arange(ROWS // GROUPS - 1), -1), GROUPS)
    nothing: Any = None
    return Tiles(
        patches=rng.standard_normal((ROWS, 12), np.float32), positions=nothing, tiles=None,
        patch_of_X=patch_of_X, filling_X=padding_X.ravel(), padding_X=padding_X.ravel(), n_groups=GROUPS,
        wanted_RS=np.arange(ROWS)[:, None],
    )  # fmt: skip


def both(padding: int, target: str, **options: Any) -> tuple[NativeVisionOps, NumpyVisionOps]:
    tiles = picture(padding)
    return NativeVisionOps(tiles, _native.ImageOps(plan(target, **options))), NumpyVisionOps(tiles)


def rows(cols: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, cols), np.float32)


def expect_near(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    assert error(found, expected, np.full_like(expected, np.abs(expected).max())) <= tolerance


@pytest.mark.parametrize("target", TARGETS)
def test_rows(target: str) -> None:
    """Norms, sums, gates and rotations; columns that are no whole vectors where rows do not matter."""
    native, numpy = both(0, target)
    x, other = rows(48), rows(48, 2)
    w, bias = rows(48, 3)[0], rows(48, 4)[0]
    expect_near(native.layer_norm(x, w, bias, 1e-5), numpy.layer_norm(x, w, bias, 1e-5))
    gate = np.array([0.7], np.float32)
    expect_near(native.add(x, other), numpy.add(x, other))
    expect_near(native.add(x, other, gate), numpy.add(x, other, gate))
    wide = 4 * rows(37)
    np.testing.assert_allclose(native.gelu(wide), numpy.gelu(wide), rtol=0, atol=2e-6)
    rope = TileRope.of(Llama4VisionConfig(tile_size=140, dim=HEADS * HEAD, n_heads=HEADS))
    turned = rows(HEADS * HEAD)
    expect_near(native.rope(turned, HEADS, rope), numpy.rope(turned, HEADS, rope))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "cols"), [("F32", 12), ("BF16", 12), ("BF16", 96), ("Q8_0", 96)])
def test_linear(kind: str, cols: int, target: str) -> None:
    """Rows of weights and of activations that are no whole vectors, with a bias and without."""
    native, numpy = both(0, target)
    data = random_blocks(kind, (40, cols), np.random.default_rng(5))
    packed, w = pack_weight(kind, (40, cols), data), dequantize(data, kind, (40, cols))
    x, bias = rows(cols), rows(40, 6)[0]
    tolerance = 2e-5 if kind == "F32" else 2e-2
    expect_near(native.linear(x, packed), numpy.linear(x, w), tolerance)
    expect_near(native.linear(x, packed, bias), numpy.linear(x, w, bias), tolerance)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("padding", [0, 1, 20, 70])
def test_attention_over_tiles(padding: int, target: str) -> None:
    native, numpy = both(padding, target)
    q, k, v = (rows(HEADS * HEAD, seed) for seed in (7, 8, 9))
    expected = numpy.attend_tiles(q, k, v, HEAD, 0.3)
    expect_near(native.attend_tiles(q, k, v, HEAD, 0.3), expected)
    alone, _ = both(padding, target, threads=1)
    many, _ = both(padding, target, threads=5)
    np.testing.assert_array_equal(
        alone.attend_tiles(q, k, v, HEAD, 0.3), many.attend_tiles(q, k, v, HEAD, 0.3)
    )
    halves, _ = both(padding, target, cache="bf16")
    expect_near(halves.attend_tiles(q, k, v, HEAD, 0.3), expected, 2e-2)


def test_bad_arguments_are_refused() -> None:
    owner = plan(TARGETS[-1])
    ops = _native.ImageOps(owner)
    x, none = rows(48), np.zeros(0, np.float32)
    packed = pack_weight("F32", (40, 12), random_blocks("F32", (40, 12), np.random.default_rng(0)))
    order = np.arange(ROWS, dtype=np.int32)
    for said, call in {
        "the weight has 12 columns": lambda: ops.linear(packed, x, none),
        "bias needs 48 values, got 40": lambda: ops.linear(packed, rows(12), np.zeros(40, np.float32)),
        "a multiple of 16": lambda: ops.layer_norm(rows(40), *np.zeros((2, 40), np.float32), 1e-5),
        "differ in shape": lambda: ops.add(x, rows(47), 1.0),
        "an angle for each pair": lambda: ops.rope(x, 5, rows(4), rows(4)),
        "no whole number of groups": lambda: ops.attend(x, x, x, order, 7, 1, 3, 1.0),
        "must be whole": lambda: ops.attend(x, x, x, order, 2, 5, 5, 1.0),
        "a number for each row": lambda: ops.attend(x, x, x, order[1:], 2, 5, 3, 1.0),
        "every row once": lambda: ops.attend(x, x, x, order + 1, 2, 5, 3, 1.0),
        "keys: from 1": lambda: ops.keys(0, 5),
        "do not fit": lambda: ops.fill(ops.keys(1, 5), 0, x, x),
    }.items():
        with pytest.raises(ValueError, match=said):
            call()


def test_a_step_refuses_images_of_another_shape() -> None:
    owner = plan(TARGETS[-1])
    table = pack_weight("F32", (10, 32), random_blocks("F32", (10, 32), np.random.default_rng(0)))
    out = owner.buffer(32, "all")
    owner.embed(table, None, out)
    step = (np.array([1, 2], np.int32), np.array([2, 0, 2, 0], np.int32), np.zeros(1, np.int32))
    one = np.zeros(1, np.int32)
    for said, given, seen in (
        ("embeddings have 32", [(one, np.zeros((3, 31), np.float32), one)], []),
        ("no such row of an image", [(one + 2, np.zeros((3, 32), np.float32), one)], []),
        ("no such row of an image", [(one, np.zeros((3, 32), np.float32), one + 3)], []),
        ("no such rows that see", [], [(0, 3, [_native.ImageOps(owner).keys(1, 5)])]),
        ("no such rows that see", [], [(0, 2, [])]),
    ):
        with pytest.raises(ValueError, match=said):
            owner.step(out, 10, *step, None, 0, given, seen)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        owner.step(out, 32, np.array([1, 10], np.int32), *step[1:])
