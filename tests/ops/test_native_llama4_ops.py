"""The compiled ops that Llama 4 alone has, on every CPU target of this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ops.test_native_ops import CACHES, TARGETS, OpBench, attend_error, chunk

from puna import _native
from puna.core import Batch
from puna.ops import cases_llama4 as cases
from puna.ops.cases import TOLERANCES, error
from puna.ops.cases_llama4 import ExpertsCase
from puna.ops.reference import Cache, NumpyOps, Step
from puna.runtime.native import BLOCK_TOKENS, pack_weight
from puna.weights.blocks import quant
from puna.weights.blocks.recode import kernel_kind

ARITHMETIC = {"f32": "float32", "bf16": "bf16", "q8": "int8"}

on_targets = pytest.mark.parametrize("target", TARGETS)


def numpy_ops(n_tokens: int, start: int = 0) -> NumpyOps:
    return NumpyOps(
        Step.of(Batch([replace(chunk(n_tokens, start), n_logits=1)]), Cache(1, 1, BLOCK_TOKENS, 1))
    )


def stored_queries(target: str, x_THC: np.ndarray, head_dim: int, start: int, **steps: float) -> np.ndarray:
    """Queries as `store` leaves them."""
    n_tokens, width = x_THC.shape
    n_blocks = (start + n_tokens) // BLOCK_TOKENS + 1
    bench = OpBench(target, n_blocks=n_blocks, kv_heads=width // head_dim, head_dim=head_dim)
    q, k, v = (bench.buffer(width, x_THC) for _ in range(3))
    bench.plan.store(q, k, v, 0, **steps)
    return bench.run(q, width, [chunk(n_tokens, start)])


@on_targets
def test_head_norm(target: str) -> None:
    for case in cases.HEAD_NORM:
        x_THC = case.x_THC()
        got = stored_queries(target, x_THC, case.head_dim, 0, norm_eps=case.eps)
        expected = numpy_ops(case.n_tokens).head_norm(x_THC, case.head_dim, case.eps)
        unit = np.maximum(np.abs(expected), np.float32(1e-30))
        assert error(got, expected, unit) <= cases.TOLERANCES["head_norm", "float32"], case


@on_targets
def test_temper(target: str) -> None:
    for case in cases.TEMPER:
        x_THC = case.x_THC()
        scales = {"floor_scale": case.temperature.floor_scale, "attn_scale": case.temperature.attn_scale}
        got = stored_queries(target, x_THC, 32, case.start, **scales)
        expected = numpy_ops(case.n_tokens, case.start).temper(x_THC, case.temperature)
        assert error(got, expected, np.abs(expected)) <= cases.TOLERANCES["temper", "float32"], case


@on_targets
@pytest.mark.parametrize("cache", CACHES)
def test_attention_in_chunks(cache: str, target: str) -> None:
    for case in (replace(c, block_size=BLOCK_TOKENS) for c in cases.CHUNKED):
        assert attend_error(case, cache, target) <= TOLERANCES["attend", CACHES[cache]], case


def packed(case: ExpertsCase, i: int) -> tuple[list[Any], np.ndarray]:
    """w1, w2 or w3: the experts' packed matrices, and their values [E, rows, cols]."""
    stacked = case.weight(i)
    rows, cols = stacked.n_out // case.n_experts, stacked.n_in
    std = cols**-0.5
    data = quant.random_blocks(stacked.kind, stacked.shape, stacked.rng(), std)
    matrices = [pack_weight(stacked.kind, (rows, cols), part) for part in data.reshape(case.n_experts, -1)]
    return matrices, quant.dequantize(data, stacked.kind, (case.n_experts, rows, cols))


class ExpertsBench:
    """A router and experts, alone in a plan for each target."""

    def __init__(self, case: ExpertsCase) -> None:
        self.case, self.router_ED = case, case.router_ED()
        self.matrices, self.values = zip(*(packed(case, i) for i in range(3)), strict=True)
        self.router = pack_weight("F32", self.router_ED.shape, self.router_ED.view(np.uint8).reshape(-1))

    def run(self, target: str, x_TD: np.ndarray) -> np.ndarray:
        bench = OpBench(target, n_blocks=64)
        x, scores, out = (
            bench.buffer(self.case.dim, x_TD),
            bench.buffer(self.case.n_experts),
            bench.buffer(self.case.dim),
        )
        bench.plan.linear(x, [self.router], [scores], -1)
        bench.plan.experts(x, scores, *self.matrices, self.case.n_active, out)
        return bench.run(out, self.case.dim, [chunk(len(x_TD))])

    def expected(self, x_TD: np.ndarray) -> np.ndarray:
        return numpy_ops(len(x_TD)).experts(x_TD, self.router_ED, *self.values, self.case.n_active)


@on_targets
@pytest.mark.parametrize("case", cases.EXPERTS, ids=str)
def test_experts(case: ExpertsCase, target: str) -> None:
    """Also: bits of a token do not depend on its company."""
    bench, x_TD = ExpertsBench(case), case.x_TD()
    got = bench.run(target, x_TD)
    forms = {_native.input_form(kernel_kind(kind)) for kind in case.kinds}
    arithmetic = next(ARITHMETIC[form] for form in ("q8", "bf16", "f32") if form in forms)
    expected = bench.expected(x_TD)
    assert error(got, expected, case.unit(expected)) <= cases.TOLERANCES["experts", arithmetic]
    alone = [bench.run(target, x_TD[i : i + 1])[0] for i in range(0, len(x_TD), 17)]
    np.testing.assert_array_equal(got[::17], alone)


@on_targets
def test_equal_and_missing_scores_choose_the_first_experts(target: str) -> None:
    case = ExpertsCase(("F32", "F32", "F32"), 2, 32, 32, n_experts=5, n_active=2)
    bench = ExpertsBench(case)
    bench.router_ED[:] = 0
    bench.router = pack_weight("F32", (5, 32), np.zeros(5 * 32 * 4, np.uint8))
    x_TD = case.x_TD()
    np.testing.assert_allclose(bench.run(target, x_TD), bench.expected(x_TD), rtol=0, atol=1e-5)
    x_TD[0] = np.nan  # goes to some experts, and stays in its row
    np.testing.assert_array_equal(bench.run(target, x_TD)[1], bench.run(target, x_TD[1:])[0])


def test_bad_experts_are_refused() -> None:
    case = ExpertsCase(("F32", "F32", "F32"), 1, 32, 64)
    w1, w2, w3 = (packed(case, i)[0] for i in range(3))
    bench = OpBench(TARGETS[-1])
    x, scores, narrow = bench.buffer(32), bench.buffer(4), bench.buffer(16)
    with pytest.raises(ValueError, match="as many of w1, w2 and w3"):
        bench.plan.experts(x, scores, w1, w2[:3], w3, 1, x)
    with pytest.raises(ValueError, match="n_active of 4 experts"):
        bench.plan.experts(x, scores, w1, w2, w3, 5, x)
    with pytest.raises(ValueError, match="differ in shape or kind"):
        bench.plan.experts(x, scores, w1, w1, w3, 1, x)
    with pytest.raises(ValueError, match="do not fit"):
        bench.plan.experts(x, scores, w1, w2, w3, 1, narrow)
    with pytest.raises(ValueError, match="reach must be 0 or more"):
        bench.plan.attend(x, 0, 1, 1.0, -1, x, 0)
