"""Attention in tiles and experts in groups, against their definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puna.core import Batch, Chunk  # noqa: E402
from puna.ops import torch_attention  # noqa: E402
from puna.ops.torch_experts import grouped_linear, share_out  # noqa: E402
from puna.ops.torch_ops import Cache, Step, TorchOps  # noqa: E402

HEADS, KV_HEADS, WIDTH = 4, 2, 8


def by_hand(q_HC: np.ndarray, k_PKC: np.ndarray, v_PKC: np.ndarray) -> np.ndarray:
    out = np.empty_like(q_HC)
    for h in range(HEADS):
        scores = k_PKC[:, h // (HEADS // KV_HEADS)] @ q_HC[h]
        weights = np.exp(scores - scores.max())
        out[h] = weights / weights.sum() @ v_PKC[:, h // (HEADS // KV_HEADS)]
    return out


@pytest.mark.parametrize("chunk", [None, 16, 64, 1024])
@pytest.mark.parametrize("tile", [7, 128])
def test_tiles_of_sequences_at_several_depths(
    chunk: int | None, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal lengths are attended together, whatever their depth; tiles are cut anywhere."""
    monkeypatch.setattr(torch_attention, "TILE", tile)
    rng = np.random.default_rng(0)
    depths, n = (0, 37, 90), 45
    cache = Cache(1, 16, 32, KV_HEADS, WIDTH, torch.float64, torch.device("cpu"))
    tables = [range(5 * i, 5 * i + 5) for i in range(3)]
    keys, values = rng.standard_normal((2, 3, 135, KV_HEADS, WIDTH))
    queries = rng.standard_normal((3, 135, HEADS, WIDTH))

    def step(spans: list[tuple[int, int, int]]) -> torch.Tensor:
        chunks = [Chunk([0] * (end - start), start, tables[i], 0) for i, start, end in spans]
        q, k, v = (
            torch.from_numpy(np.concatenate([x[i, a:b].reshape(b - a, -1) for i, a, b in spans]))
            for x in (queries, keys, values)
        )
        ops = TorchOps(Step.of(Batch(chunks), cache), torch.float64)
        return ops.attend(q, k, v, 0, WIDTH, 1.0, chunk)

    step([(i, 0, depth) for i, depth in enumerate(depths) if depth])
    got = step([(i, depth, depth + n) for i, depth in enumerate(depths)]).numpy()
    got = got.reshape(3, n, HEADS, WIDTH)
    for i, depth in enumerate(depths):
        for row in (0, 6, 7, 44):
            end = depth + row + 1
            first = (end - 1) // chunk * chunk if chunk else 0
            expected = by_hand(queries[i, end - 1], keys[i, first:end], values[i, first:end])
            np.testing.assert_allclose(got[i, row], expected, rtol=0, atol=1e-12)


def test_a_tile_looks_no_further_than_it_may() -> None:
    last_BN = torch.arange(100, 400)[None]
    tiles = torch_attention.masks_of(last_BN, (100, 100), 400, 128)
    assert [(t.positions.start, t.positions.stop) for t in tiles] == [(0, 228), (128, 356), (256, 400)]
    assert max(t.seen_B1NP.numel() for t in tiles) <= 128 * 228


@pytest.mark.parametrize(("n_active", "n_experts"), [(1, 5), (2, 5), (2, 64)])
def test_experts_without_tokens_and_with_many(n_active: int, n_experts: int) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(9, 6, generator=random, dtype=torch.float64)
    w = torch.randn(n_experts, 4, 6, generator=random, dtype=torch.float64)
    chosen = torch.stack([torch.randperm(n_experts, generator=random)[:n_active] for _ in range(9)])
    shares = share_out(chosen, n_experts)
    got = shares.collect(grouped_linear(x[shares.tokens_N], w, shares))
    expected = torch.stack([sum(w[e] @ x[t] for e in chosen[t]) for t in range(9)])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert sum(shares.counts) == 9 * n_active
