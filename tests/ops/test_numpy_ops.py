"""The numpy ops against their definitions, written out in float64; and the cases that every executor runs."""

from __future__ import annotations

import numpy as np
import pytest

from puna.core import Batch, Chunk
from puna.model.rope import RopeTable
from puna.ops import cases
from puna.ops.cases import TOLERANCES, AttendCase, RmsNormCase, RopeCase, SwigluCase, error
from puna.ops.cases_llama4 import CHUNKED
from puna.ops.reference import Cache, NumpyOps, Step
from puna.weights.blocks import formats, quant

F64 = np.float64


def ops_for(*chunks: Chunk, cache: Cache | None = None) -> NumpyOps:
    return NumpyOps(Step.of(Batch(list(chunks)), cache or Cache(1, 64, 16, 1)))


def one_chunk(n_tokens: int, start: int = 0) -> NumpyOps:
    blocks = range(-(-(start + n_tokens) // 16))
    return ops_for(Chunk([0] * n_tokens, start, blocks, 1))


def attend_by_hand(q_HC, k_PKC, v_PKC, scale: float) -> np.ndarray:
    """One query over P positions, head by head, in float64 -> [H, C]."""
    n_heads, n_kv_heads = len(q_HC), k_PKC.shape[1]
    out = np.empty_like(q_HC, F64)
    for h in range(n_heads):
        kv = h // (n_heads // n_kv_heads)
        scores = [scale * np.dot(q_HC[h].astype(F64), k_C) for k_C in k_PKC[:, kv].astype(F64)]
        weights = np.exp(np.array(scores) - max(scores))
        out[h] = weights / weights.sum() @ v_PKC[:, kv].astype(F64)
    return out


@pytest.mark.parametrize("case", cases.ATTEND + CHUNKED, ids=str)
def test_attend(case: AttendCase) -> None:
    cache = Cache(2, case.n_blocks, case.block_size, case.n_kv_heads * case.head_dim)
    seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # first block of a sequence -> its keys and values
    steps = list(case.steps())
    for batch, q, k, v in steps:
        ops = NumpyOps(Step.of(batch, cache))
        got = ops.attend(q, k, v, 1, case.head_dim, case.scale, case.chunk)
        row = 0
        for chunk in batch.chunks:
            rows = slice(row, row + len(chunk.tokens))
            row = rows.stop
            past = seen.get(chunk.blocks[0], (k[:0], v[:0]))
            ks, vs = seen[chunk.blocks[0]] = tuple(
                np.concatenate(pair) for pair in zip(past, (k[rows], v[rows]), strict=True)
            )
            if batch is not steps[-1][0]:
                continue
            heads = (case.n_kv_heads, case.head_dim)
            for i in {0, len(chunk.tokens) - 1, len(chunk.tokens) // 2}:
                end = chunk.start + i + 1
                first = (end - 1) // case.chunk * case.chunk if case.chunk else 0
                expected = attend_by_hand(
                    q[rows][i].reshape(-1, case.head_dim), ks[first:end].reshape(-1, *heads),
                    vs[first:end].reshape(-1, *heads), case.scale,
                )  # fmt: skip
                unit = case.unit(vs)
                assert error(got[rows][i], expected.ravel(), unit) <= TOLERANCES["attend", "F32"]
    assert not cache.keys_LSKC[0].any()  # the other layer


def test_attend_blocks_of_queries_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    case = AttendCase(((5, 50),), 4, 2, 32)
    outputs = []
    for block in (256, 7):
        monkeypatch.setattr("puna.ops.reference.QUERY_BLOCK", block)
        cache = Cache(1, case.n_blocks, case.block_size, 64)
        for batch, q, k, v in case.steps():
            output = NumpyOps(Step.of(batch, cache)).attend(q, k, v, 0, 32, case.scale)
        outputs.append(output)
    np.testing.assert_allclose(*outputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", cases.RMS_NORM, ids=str)
def test_rms_norm(case: RmsNormCase) -> None:
    x, w = case.inputs()
    got = one_chunk(case.n_tokens).rms_norm(x, w, case.eps)
    expected = np.array([row / np.sqrt(np.mean(row * row) + case.eps) * w for row in x.astype(F64)])
    assert got.dtype == np.float32
    assert error(got, expected, case.unit(expected)) <= TOLERANCES["rms_norm", "float32"]


@pytest.mark.parametrize("case", cases.ROPE, ids=str)
def test_rope_is_complex_multiplication(case: RopeCase) -> None:
    """Meta's form: pairs as complex numbers, times exp(i position frequency)."""
    frequencies = case.theta ** -(np.arange(0, case.head_dim, 2) / case.head_dim)
    x = case.x_THC()
    ops = NumpyOps(
        Step.of(
            Batch([Chunk([0] * case.n_tokens, case.start, range(-(-(case.start + case.n_tokens) // 16)), 1)]),
            Cache(1, 1, 16, 1),
        )
    )
    got = ops.rope(x, case.n_heads, RopeTable(frequencies, case.attention_factor))
    turn = np.exp(1j * np.outer(np.arange(case.start, case.start + case.n_tokens), frequencies))
    pairs = x.astype(F64).view(np.complex128).reshape(case.n_tokens, case.n_heads, -1)
    expected = (pairs * turn[:, None] * case.attention_factor).view(F64).reshape(x.shape)
    assert error(got, expected, case.unit(x)) <= TOLERANCES["rope", "float32"]


@pytest.mark.parametrize("case", cases.SWIGLU, ids=str)
def test_swiglu(case: SwigluCase) -> None:
    gate, up = case.inputs()
    got = one_chunk(case.n_tokens).swiglu(gate, up)
    expected = gate.astype(F64) * (0.5 * (1 + np.tanh(gate.astype(F64) / 2))) * up
    assert error(got, expected, case.unit(gate, up)) <= TOLERANCES["swiglu", "float32"]


def test_swiglu_of_extreme_gates() -> None:
    gate = np.array([[-1e30, -100.0, 0.0, 100.0, 1e30]], np.float32)
    got = one_chunk(1).swiglu(gate, np.ones_like(gate))
    np.testing.assert_array_equal(got, np.maximum(gate, 0))


@pytest.mark.parametrize("case", [c for c in cases.LINEAR if c.n_tokens in (1, 33)], ids=str)
def test_linear(case: cases.LinearCase) -> None:
    w = quant.dequantize(quant.random_blocks(case.kind, case.shape, case.rng()), case.kind, case.shape)
    x = case.x_TD()
    got = one_chunk(case.n_tokens).linear(x, w)
    expected = x.astype(F64) @ w.T.astype(F64)
    assert error(got, expected, case.unit(x, w)) <= TOLERANCES["linear", "float32"]


def test_int8_tolerance_is_what_int8_costs() -> None:
    """Activations rounded to 8 bits per 32 values stay within the tolerance, and would not within a third."""
    worst = 0.0
    for case in (c for c in cases.LINEAR if c.kind == "F32"):
        w = quant.dequantize(quant.random_blocks("F32", case.shape, case.rng()), "F32", case.shape)
        x = case.x_TD()
        blocks = x.reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / 127
        rounded = (np.round(blocks / step) * step).reshape(x.shape)
        worst = max(worst, error(rounded @ w.T, x @ w.T, case.unit(x, w)))
    assert TOLERANCES["linear", "int8"] / 3 < worst < TOLERANCES["linear", "int8"]


def test_embed_add_select() -> None:
    ops = ops_for(Chunk([3, 1, 2], 0, [0], 2), Chunk([4], 17, [1, 2], 1), Chunk([0, 0], 0, [3], 0))
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    x = ops.embed(table)
    np.testing.assert_array_equal(x, table[[3, 1, 2, 4, 0, 0]])
    np.testing.assert_array_equal(ops.add(x, x), 2 * x)
    np.testing.assert_array_equal(ops.select(x), table[[1, 2, 4]])
    np.testing.assert_array_equal(ops.step.positions_T, [0, 1, 2, 17, 0, 1])


def test_ops_leave_their_arguments() -> None:
    rng = np.random.default_rng(0)
    ops = ops_for(Chunk([0, 0], 0, [0], 1), cache=Cache(1, 1, 16, 32))
    x, w = rng.standard_normal((2, 32), np.float32), rng.standard_normal(32, np.float32)
    arguments = [x, w]
    before = [a.copy() for a in arguments]
    table = RopeTable(np.ones(16))
    ops.rms_norm(x, w, 1e-5)
    ops.rope(x, 1, table)
    ops.swiglu(x, x)
    ops.attend(x, x, x, 0, 32, 1.0)
    ops.add(x, x)
    for a, b in zip(arguments, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_cases_cover_the_formats() -> None:
    assert {c.kind for c in cases.LINEAR} == set(formats.FORMATS) == {c.kind for c in cases.EMBED}
    for case in (*cases.LINEAR, *cases.EMBED):
        formats.n_bytes(case.kind, case.shape)  # whole blocks
    assert {kind for kind, f in formats.FORMATS.items() if f.block_len == 256} == set(cases.WIDE_KINDS)


def test_error_sees_shapes_and_nans() -> None:
    x = np.ones((2, 2), np.float32)
    assert error(x, x[:1], 1.0) == float("inf")
    assert error(x * np.float32("nan"), x, 1.0) == float("inf")
    assert error(x * 2, x, 0.5) == 2.0
    assert error(x[:0], x[:0], 1.0) == 0.0
