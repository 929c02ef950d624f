"""Every compiled op on every CPU target of this machine, over the cases of ops/cases.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from puna import _native
from puna.core import Batch, Chunk
from puna.model.rope import RopeTable
from puna.ops import cases
from puna.ops.cases import (
    TOLERANCES,
    AttendCase,
    EmbedCase,
    LinearCase,
    RmsNormCase,
    RopeCase,
    SwigluCase,
    error,
)
from puna.ops.reference import Cache, NumpyOps, Step
from puna.runtime.cpu import TILES
from puna.runtime.native import BLOCK_TOKENS, pack_weight
from puna.weights.blocks import quant
from puna.weights.blocks.formats import FORMATS, n_bytes
from puna.weights.blocks.recode import kernel_kind

TARGETS = _native.available_targets()
CACHES = {"bf16": "BF16", "f16": "F16", "f32": "F32", "q8_0": "Q8_0"}

FLOAT_SCALES = np.array([0, -0.0, 1e-40, 1e-25, -1e-18, 1e18, 3e19, 1e38, np.inf, np.nan], np.float32)
HALF_SCALES = np.array([0, -0.0, 6e-8, -65504, np.inf, np.nan], np.float16)

ALL_KINDS = cases.NARROW_KINDS + cases.WIDE_KINDS

on_targets = pytest.mark.parametrize("target", TARGETS)


class OpBench:
    """A plan of one op: put values in, run, take values out."""

    def __init__(
        self, target: str, *, cache: str = "f32", n_blocks: int = 8, kv_heads: int = 1, head_dim: int = 32
    ) -> None:
        self.plan: Any = _native.Plan(target, 2, 2048, 2048, cache, 1, n_blocks, kv_heads, head_dim)

    def buffer(self, cols: int, values: np.ndarray | None = None) -> int:
        number: int = self.plan.buffer(cols, "all")
        if values is not None:
            self.plan.set_values(number, values)
        return number

    def run(self, out: int, cols: int, chunks: Sequence[Chunk]) -> np.ndarray:
        tokens = np.concatenate([np.asarray(c.tokens, np.int32) for c in chunks])
        table = np.array([(len(c.tokens), c.start, c.n_logits) for c in chunks], np.int32)
        begins = np.cumsum([0] + [len(c.blocks) for c in chunks[:-1]], dtype=np.int32)
        blocks = np.concatenate([np.asarray(c.blocks, np.int32) for c in chunks])
        self.plan.step(out, cols, tokens, np.column_stack([table, begins]).ravel(), blocks)
        values: np.ndarray = self.plan.values(out, len(tokens))
        return values[:, :cols]


def chunk(n_tokens: int, start: int = 0) -> Chunk:
    return Chunk([0] * n_tokens, start, [0] * -(-(start + n_tokens) // BLOCK_TOKENS), 0)


def weight_of(case: LinearCase | EmbedCase) -> tuple[Any, np.ndarray]:
    data = quant.random_blocks(case.kind, case.shape, case.rng())
    return pack_weight(case.kind, case.shape, data), quant.dequantize(data, case.kind, case.shape)


def as_multiplied(x_TD: np.ndarray, form: str) -> np.ndarray:
    """Activations as they meet the weights: as they are, in bf16, or in int8 by 32 (csrc/types.h)."""
    if form == "f32":
        return x_TD.astype(np.float64)
    if form == "bf16":
        bits = x_TD.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)
    groups = x_TD.reshape(-1, 32)
    bits = (np.abs(groups).max(1, keepdims=True) / np.float32(127)).view(np.uint32)
    scale = ((bits + 0x1FFFFF) & 0xFFE00000).view(np.float32)
    return (np.rint(groups * (np.float32(1) / scale)) * scale.astype(np.float64)).reshape(x_TD.shape)


def as_expanded(packed: Any, w_ED: np.ndarray) -> np.ndarray:
    """Weights as they are multiplied in tiles: near the file's, and no smaller on average."""
    one_D = np.eye(w_ED.shape[1], dtype=np.float32)
    found_ED = _native.linear(packed, one_D, TILES)[:, : len(w_ED)].T
    most_E1 = np.abs(w_ED).max(1, keepdims=True)
    assert (np.abs(found_ED - w_ED) <= 0.009 * np.abs(w_ED) + 0.001 * most_E1).all()
    assert abs((found_ED * w_ED).sum(dtype=np.float64) / (w_ED**2).sum(dtype=np.float64) - 1) < 2e-3
    return found_ED


def test_matrices_that_halves_cannot_hold_are_multiplied_as_elsewhere() -> None:
    """Rows too far apart, scales beyond all measure or no numbers: equal bits, not other numbers."""
    rng = np.random.default_rng(5)
    x_TD = rng.standard_normal((20, 64), np.float32)
    for scale in (1e-5, 1e-20, 1e25, np.inf, np.nan):
        w_ED = rng.standard_normal((32, 64), np.float32)
        w_ED[7] *= scale
        blocks = as_int8(w_ED)
        packed = pack_weight("INT8", w_ED.shape, blocks)
        for target in {*TARGETS} & {TILES}:
            np.testing.assert_array_equal(
                _native.linear(packed, x_TD, target), _native.linear(packed, x_TD, "scalar")
            )


def as_int8(w_ED: np.ndarray) -> np.ndarray:
    """Blocks of INT8: a float scale, and 32 integers."""
    groups = w_ED.reshape(-1, 32)
    with np.errstate(invalid="ignore", divide="ignore"):
        d = (np.abs(groups).max(1, keepdims=True) / 127).astype(np.float32)
        q = np.nan_to_num(groups / d).round().astype(np.int8)
    return np.concatenate([d.view(np.uint8), q.view(np.uint8)], axis=1).ravel()


@on_targets
@pytest.mark.parametrize("kind", cases.NARROW_KINDS + cases.WIDE_KINDS)
def test_linear(kind: str, target: str) -> None:
    for case in (c for c in cases.LINEAR if c.kind == kind):
        packed, w_ED = weight_of(case)
        x_TD = case.x_TD()
        got = _native.linear(packed, x_TD, target)[:, : case.n_out]
        form = _native.input_form(kernel_kind(kind))
        if target == TILES and form == "q8":
            form, w_ED = "bf16", as_expanded(packed, w_ED)
        rounded_TD = as_multiplied(x_TD, form)
        expected = (rounded_TD @ w_ED.astype(np.float64).T).astype(np.float32)
        assert error(got, expected, case.unit(x_TD, w_ED)) <= TOLERANCES["linear", "float32"], case


@pytest.mark.parametrize("kind", cases.NARROW_KINDS + cases.WIDE_KINDS)
def test_linear_is_the_same_on_every_target_and_for_every_number_of_tokens(kind: str) -> None:
    """Equal bits: the order of operations is part of the contract. (bf16 units have orders of their own.)"""
    case = next(c for c in cases.LINEAR if c.kind == kind and c.n_tokens == 100)
    packed, _ = weight_of(case)
    x_TD = case.x_TD()
    for target in TARGETS:
        together = _native.linear(packed, x_TD, target)
        one_by_one = np.concatenate(
            [_native.linear(packed, x_TD[i : i + 1], target) for i in range(len(x_TD))]
        )
        np.testing.assert_array_equal(together, one_by_one)
        own = {"avx512bf16": ("BF16", "FP8"), TILES: tuple(k for k in ALL_KINDS if k not in ("F32", "F16"))}
        if kind not in own.get(target, ()):
            np.testing.assert_array_equal(together, _native.linear(packed, x_TD, "scalar"))


@on_targets
@pytest.mark.parametrize("case", cases.EMBED, ids=str)
def test_packed_weights_are_the_numbers_of_the_file(case: EmbedCase, target: str) -> None:
    packed, w_VD = weight_of(case)
    np.testing.assert_array_equal(_native.unpack_matrix(packed, target), w_VD)


@on_targets
def test_rms_norm(target: str) -> None:
    for case in cases.RMS_NORM:
        x_TD, w_D = case.inputs()
        bench = OpBench(target)
        x, out = bench.buffer(case.dim, x_TD), bench.buffer(case.dim)
        bench.plan.rms_norm(x, w_D, case.eps, out, 0)
        expected = NumpyOps(Step.of(Batch([chunk(1)]), Cache(1, 1, BLOCK_TOKENS, 1))).rms_norm(
            x_TD, w_D, case.eps
        )
        got = bench.run(out, case.dim, [chunk(case.n_tokens)])
        assert error(got, expected, RmsNormCase.unit(expected)) <= TOLERANCES["rms_norm", "float32"], case


@on_targets
def test_swiglu(target: str) -> None:
    for case in cases.SWIGLU:
        gate_TF, up_TF = case.inputs()
        bench = OpBench(target)
        gate, up, out = (
            bench.buffer(case.ffn_dim, gate_TF),
            bench.buffer(case.ffn_dim, up_TF),
            bench.buffer(case.ffn_dim),
        )
        bench.plan.swiglu(gate, up, out)
        expected = NumpyOps(Step.of(Batch([chunk(1)]), Cache(1, 1, BLOCK_TOKENS, 1))).swiglu(gate_TF, up_TF)
        got = bench.run(out, case.ffn_dim, [chunk(case.n_tokens)])
        assert error(got, expected, SwigluCase.unit(gate_TF, up_TF)) <= TOLERANCES["swiglu", "float32"], case


@on_targets
def test_rope(target: str) -> None:
    for case in (c for c in cases.ROPE if c.head_dim % 32 == 0):
        frequencies = case.theta ** -(np.arange(0, case.head_dim, 2) / case.head_dim)
        table = RopeTable(frequencies, case.attention_factor)
        last_block = (case.start + case.n_tokens) // BLOCK_TOKENS
        bench = OpBench(target, n_blocks=last_block + 1, kv_heads=case.n_heads, head_dim=case.head_dim)
        bench.plan.set_rotation(frequencies.tolist(), case.attention_factor)
        x_THC = case.x_THC()
        q, k, v = (bench.buffer(x_THC.shape[1], x_THC) for _ in range(3))
        bench.plan.store(q, k, v, 0, True)
        step = chunk(case.n_tokens, case.start)
        got = bench.run(q, x_THC.shape[1], [step])
        expected = NumpyOps(Step.of(Batch([step]), Cache(1, last_block + 1, BLOCK_TOKENS, 1))).rope(
            x_THC, case.n_heads, table
        )
        assert error(got, expected, RopeCase.unit(x_THC)) <= 4 * TOLERANCES["rope", "float32"], case


@on_targets
@pytest.mark.parametrize("cache", CACHES)
def test_attend(cache: str, target: str) -> None:
    for case in (replace(c, block_size=BLOCK_TOKENS) for c in cases.ATTEND):
        assert attend_error(case, cache, target) <= TOLERANCES["attend", CACHES[cache]], case


def attend_error(case: AttendCase, cache: str, target: str) -> float:
    bench = OpBench(
        target, cache=cache, n_blocks=case.n_blocks, kv_heads=case.n_kv_heads, head_dim=case.head_dim
    )
    bench.plan.set_rotation([0.0] * (case.head_dim // 2), 1.0)  # positions turn nothing
    widths = [case.n_heads * case.head_dim, *[case.n_kv_heads * case.head_dim] * 2]
    q, k, v = (bench.buffer(width) for width in widths)
    out = bench.buffer(widths[0])
    bench.plan.store(q, k, v, 0, True)
    bench.plan.attend(q, 0, case.n_heads, case.scale, case.chunk or 0, out, 0)
    reference = Cache(1, case.n_blocks, case.block_size, widths[1])
    for batch, *values in case.steps():
        for buffer, array in zip((q, k, v), values, strict=True):
            bench.plan.set_values(buffer, array)
        got = bench.run(out, widths[0], batch.chunks)
        ops = NumpyOps(Step.of(batch, reference))
        expected = ops.attend(*values, 0, case.head_dim, case.scale, case.chunk)
    return error(got, expected, case.unit(values[2]))


@on_targets
@pytest.mark.parametrize("cache", CACHES)
def test_what_a_former_owner_left_in_a_block_does_not_matter(cache: str, target: str) -> None:
    """Not even infinities: masked positions have weight zero, but zero times infinity is not a number."""
    bench = OpBench(target, cache=cache)
    bench.plan.set_rotation([0.0] * 16, 1.0)
    q, k, v, out = (bench.buffer(32) for _ in range(4))
    bench.plan.store(q, k, v, 0, True)
    bench.plan.attend(q, 0, 1, 1.0, 0, out, 0)
    for buffer in (q, k, v):
        bench.plan.set_values(buffer, np.full((BLOCK_TOKENS, 32), np.inf, np.float32))
    bench.run(out, 32, [chunk(BLOCK_TOKENS)])
    for n_tokens in (1, 5):
        for buffer in (q, k, v):
            bench.plan.set_values(buffer, np.ones((n_tokens, 32), np.float32))
        np.testing.assert_allclose(bench.run(out, 32, [chunk(n_tokens)]), 1.0, rtol=1e-3)


@on_targets
def test_numbers_that_int8_cannot_hold_stay_in_their_row(target: str) -> None:
    """Infinities, what is no number, groups too small to be scaled: they do not reach other rows."""
    packed = pack_weight("Q8_0", (16, 64), quant.random_blocks("Q8_0", (16, 64), np.random.default_rng(0)))
    good_TD = np.random.default_rng(1).standard_normal((1, 64), np.float32)
    expected_TE = _native.linear(packed, good_TD, target)
    for value in (np.inf, -np.inf, np.nan, 1e-40, np.finfo(np.float32).max):
        bad_TD = good_TD.copy()
        bad_TD[0, ::3] = value
        for n_around in (1, 5, 40):
            rows = [*[good_TD] * n_around, bad_TD, np.full_like(good_TD, value), *[good_TD] * n_around]
            got_TE = _native.linear(packed, np.concatenate(rows), target)
            np.testing.assert_array_equal(got_TE[:n_around], np.repeat(expected_TE, n_around, 0))
            np.testing.assert_array_equal(got_TE[-n_around:], np.repeat(expected_TE, n_around, 0))
            alone_TE = _native.linear(packed, bad_TD, target)
            np.testing.assert_array_equal(got_TE[n_around : n_around + 1], alone_TE)
            assert np.isfinite(alone_TE).all() == (value == 1e-40)


@on_targets
@pytest.mark.parametrize("kind", ["INT8", "INT8_16", "INT4_MIN", "Q8_0", "Q4_K"])
def test_scales_out_of_all_proportion(kind: str, target: str) -> None:
    """Many tokens at once add exponents of scales: zeros, tiny, huge and no numbers come out as alone."""
    rng = np.random.default_rng(3)
    data = quant.random_blocks(kind, (64, 512), rng).reshape(64, -1, FORMATS[kind].block_bytes)
    scale = FLOAT_SCALES if kind.startswith("INT") else HALF_SCALES
    for row in range(48):  # of three tiles; the fourth is tame
        start = rng.integers(data.shape[1])
        value = np.array(rng.choice(scale, 1))
        data[row, start, : value.nbytes] = value.view(np.uint8)
    packed = pack_weight(kind, (64, 512), data.reshape(-1))
    x_TD = rng.standard_normal((90, 512), np.float32) * np.float32(10) ** rng.integers(-30, 18, (90, 1))
    together = _native.linear(packed, x_TD.astype(np.float32), target)
    one_by_one = [_native.linear(packed, x_TD[i : i + 1].astype(np.float32), target) for i in range(90)]
    np.testing.assert_array_equal(together, np.concatenate(one_by_one))


@on_targets
@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_of_many_heads(cache: str, target: str) -> None:
    bench = OpBench(target, cache=cache, n_blocks=1, kv_heads=520)
    bench.plan.set_rotation([0.0] * 16, 1.0)
    values_TKC = np.repeat(np.arange(1, 521, dtype=np.float32), 32)[None].repeat(3, 0)
    q, k, v, out = (bench.buffer(520 * 32, values_TKC) for _ in range(4))
    bench.plan.store(q, k, v, 0, True)
    bench.plan.attend(q, 0, 520, 1.0, 0, out, 0)
    np.testing.assert_allclose(bench.run(out, 520 * 32, [chunk(3)]), values_TKC, rtol=1e-2)


def test_bad_arguments_are_refused() -> None:
    data = np.zeros(18, np.uint8)
    with pytest.raises(ValueError, match="no kernel for tensor type Q9"):
        _native.packed_bytes("Q9", 1, 32)
    with pytest.raises(ValueError, match="whole number of blocks"):
        pack_weight("Q4_0", (1, 33), data)
    with pytest.raises(ValueError, match="needs 36 bytes, got 18"):
        pack_weight("Q4_0", (2, 32), data)
    with pytest.raises(ValueError, match="not available on this machine; available: scalar"):
        _native.chosen_target("avx9000")
    bench = OpBench(TARGETS[-1])
    out = bench.buffer(32)
    with pytest.raises(ValueError, match="no such cache block"):
        bench.run(out, 32, [Chunk([0], 0, [99], 0)])
    with pytest.raises(ValueError, match="more tokens than"):
        bench.run(out, 32, [chunk(2049)])
    with pytest.raises(ValueError, match="malformed chunk"):
        bench.run(out, 32, [Chunk([0], 2**31 - 1, [0], 0)])
    with pytest.raises(ValueError, match="rms_norm: 31 weights for 32 columns"):
        bench.plan.rms_norm(out, np.ones(31, np.float32), 1e-5, out, 0)
    with pytest.raises(ValueError, match="more than the buffer holds"):
        bench.plan.set_values(out, np.zeros((2049, 32), np.float32))


def test_bad_adapters_are_refused() -> None:
    def matrix(rows: int, cols: int, kind: str = "F32") -> _native.Matrix:
        return pack_weight(kind, (rows, cols), np.zeros(n_bytes(kind, (rows, cols)), np.uint8))

    bench = OpBench(TARGETS[-1])
    x, out = bench.buffer(64), bench.buffer(32)
    site = bench.plan.site(32, 64)
    with pytest.raises(ValueError, match="no site of the weight's shape"):
        bench.plan.linear(x, [matrix(32, 32)], [out], -1, [site])
    with pytest.raises(ValueError, match="a site for each weight"):
        bench.plan.linear(x, [matrix(32, 64)], [out], -1, [site, site])
    bench.plan.linear(x, [matrix(32, 64)], [out], -1, [site])
    good = matrix(16, 64), matrix(32, 16)
    for slot, at, down, up, message in (
        (-1, site, *good, "a slot must be from 0"),
        (4096, site, *good, "a slot must be from 0"),
        (0, site + 1, *good, "no such site"),
        (0, site, good[0], None, "down and up are needed"),
        (0, site, matrix(16, 32), good[1], "do not fit the site"),
        (0, site, good[0], matrix(16, 16), "do not fit the site"),
        (0, site, matrix(8, 64), matrix(32, 8), "no multiple of 16"),
        (0, site, matrix(16, 64, "Q8_0"), good[1], "must be F32, F16 or BF16"),
    ):
        with pytest.raises(ValueError, match=message):
            bench.plan.set_adapter(slot, at, down, up, 1.0)
    bench.plan.set_adapter(0, site, *good, 1.0)
    bench.plan.set_adapter(0, site, None, None, 0.0)


@on_targets
def test_every_8_bit_float(target: str) -> None:
    """As looked up and as multiplied: numbers below the normal range are made in another way."""
    codes = np.delete(np.arange(256, dtype=np.uint8), (127, 255))
    blocks = np.zeros((16, 8), FORMATS["FP8"].layout)
    blocks["qs"] = np.resize(codes, (16, 8, 32))
    blocks["d"] = np.linspace(0.5, 2, 16, dtype=np.float32)[:, None]
    data = blocks.reshape(-1).view(np.uint8)
    expected = quant.dequantize(data, "FP8", (16, 256))
    matrix = pack_weight("FP8", (16, 256), data)
    np.testing.assert_array_equal(_native.unpack_matrix(matrix, target), expected)
    one_of_each = np.eye(256, dtype=np.float32)
    for n_tokens in (1, 3, 256):
        got = np.concatenate(
            [_native.linear(matrix, one_of_each[i : i + n_tokens], target) for i in range(0, 256, n_tokens)]
        )
        np.testing.assert_array_equal(got.T, expected)
