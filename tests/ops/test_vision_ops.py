"""The ops of image encoders in numpy and torch against their definitions in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puna.model.vision import TileRope, seen_from, unfold  # noqa: E402
from puna.model.vision_config import Llama4VisionConfig  # noqa: E402
from puna.ops import cases  # noqa: E402
from puna.ops.cases import TOLERANCES, GeluCase, LayerNormCase, error  # noqa: E402
from puna.ops.reference_vision import NumpyVisionOps  # noqa: E402
from puna.ops.torch_vision import TorchVisionOps  # noqa: E402

N_GROUPS, HEADS, WIDTH = 3, 2, 8
KINDS = ["numpy", "torch"]


def tiles(n_groups: int = 1, padding: Any = None, wanted: Any = None) -> Any:
    n = 12
    padding = np.zeros(n, np.bool_) if padding is None else np.isin(np.arange(n), padding)
    wanted = np.arange(n)[:, None] if wanted is None else np.array(wanted)
    return SimpleNamespace(
        patch_of_X=np.arange(n), n_groups=n_groups, padding_X=padding, filling_X=padding, wanted_RS=wanted
    )


def call(kind: str, of: Any, op: str, *arguments: Any) -> np.ndarray:
    if kind == "numpy":
        result: np.ndarray = getattr(NumpyVisionOps(of), op)(*arguments)
        return result
    ops = TorchVisionOps(of, torch.float32, torch.device("cpu"))

    def tensor(x: Any) -> Any:
        return torch.from_numpy(x) if isinstance(x, np.ndarray) else x

    values = [[tensor(x) for x in a] if isinstance(a, list) else tensor(a) for a in arguments]
    result = getattr(ops, op)(*values).numpy()
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", cases.LAYER_NORM, ids=str)
def test_layer_norm(case: LayerNormCase, kind: str) -> None:
    x, w, bias = case.inputs()
    wide = (
        torch.from_numpy(x).double(),
        (case.dim,),
        torch.from_numpy(w).double(),
        torch.from_numpy(bias).double(),
    )
    expected = torch.nn.functional.layer_norm(*wide, case.eps).numpy()
    got = call(kind, tiles(), "layer_norm", x, w, bias, case.eps)
    assert got.dtype == np.float32
    assert error(got, expected, case.unit(x)) <= TOLERANCES["layer_norm", "float32"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", cases.GELU, ids=str)
def test_gelu(case: GeluCase, kind: str) -> None:
    x = case.x_XF()
    expected = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    got = call(kind, tiles(), "gelu", x)
    assert got.dtype == np.float32
    assert error(got, expected, case.unit(x)) <= TOLERANCES["gelu", "float32"]


def by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray, see: np.ndarray) -> np.ndarray:
    """Attention with a mask [X, X], head by head in float64."""
    out = []
    for head in np.split(np.arange(HEADS * WIDTH), HEADS):
        scores = np.where(see, q[:, head].astype(np.float64) @ k[:, head].T * WIDTH**-0.5, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out.append(weights / weights.sum(1, keepdims=True) @ v[:, head])
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_groups", "padding"), [(1, []), (3, []), (1, [5, 6, 11])])
def test_attend_tiles(n_groups: int, padding: list[int], kind: str) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 12, HEADS * WIDTH)).astype(np.float32)
    hidden = np.isin(np.arange(12), padding)
    group = np.arange(12) * n_groups // 12
    see = (group[:, None] == group) & ~(hidden[:, None] & hidden)
    got = call(kind, tiles(n_groups, padding), "attend_tiles", q, k, v, WIDTH, WIDTH**-0.5)
    np.testing.assert_allclose(got, by_hand(q, k, v, see), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_masked_joined_and_gathered(kind: str) -> None:
    x = np.arange(1.0, 25.0, dtype=np.float32).reshape(12, 2)
    masked = call(kind, tiles(padding=[3]), "mask_rows", x)
    assert not masked[3].any()
    np.testing.assert_array_equal(np.delete(masked, 3, 0), np.delete(x, 3, 0))
    np.testing.assert_array_equal(call(kind, tiles(), "join", x, []), x)
    joined = call(kind, tiles(), "join", x, [x + 100, x + 200])
    np.testing.assert_array_equal(joined[0], [1, 2, 101, 201, 102, 202])
    got = call(kind, tiles(wanted=[[0, 2], [4, 1]]), "gather", x)
    np.testing.assert_array_equal(got, [[1, 2, 5, 6], [9, 10, 3, 4]])


@pytest.mark.parametrize("kind", KINDS)
def test_rope_turns_by_column_and_row(kind: str) -> None:
    """Meta's form (llama4/vision/encoder.py): complex numbers; the class token stays."""
    rope = TileRope.of(Llama4VisionConfig(dim=16, n_heads=HEADS, patch_size=84))  # 4 patches of a row
    of = tiles()
    of.patch_of_X = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, -1])
    x = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
    got = call(kind, of, "rope", x, HEADS, rope)
    frequencies = 1 / 10000 ** (np.arange(0, 4, 2) / 4)
    for row, patch in enumerate(of.patch_of_X[:-1]):
        turns = np.concatenate([(patch % 4 + 1) * frequencies, (patch // 4 + 1) * frequencies])
        for head in (slice(0, 8), slice(8, 16)):
            expected = x[row, head].astype(np.float64).view(np.complex128) * np.exp(1j * turns)
            np.testing.assert_allclose(got[row, head], expected.view(np.float64), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got[-1], x[-1])


def test_unfold_is_torchs() -> None:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    expected = torch.nn.functional.unfold(torch.from_numpy(pixels), 4, stride=4).transpose(1, 2)
    np.testing.assert_array_equal(unfold(pixels, 4), expected.numpy())


@pytest.mark.parametrize("positions", [[], [3], [3, 9], [3, 4], [0, 1, 5, 6, 7, 12], [2, 3, 5, 7, 8]])
def test_images_are_seen_as_transformers_says(positions: list[int]) -> None:
    processing = pytest.importorskip("transformers.models.mllama.processing_mllama")
    tokens = [7 if i in positions else 1 for i in range(20)]
    masks = processing.get_cross_attention_token_mask(tokens, 7)
    assert seen_from(positions) == [(first, None if last in (-1, 20) else last) for first, last in masks]
