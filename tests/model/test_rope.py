"""Rotary tables against transformers (golden/rope.json) and against high-precision arithmetic."""

from __future__ import annotations

import json
import math
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.model.config import ModelConfig, RopeScaling, from_hf
from puna.model.rope import rope_table

ENTRIES = json.loads((Path(__file__).parent.parent / "golden" / "rope.json").read_text())["entries"]


def config(scaling: RopeScaling | None = None, head_dim: int = 64, theta: float = 5e5) -> ModelConfig:
    return ModelConfig(
        dim=128, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=head_dim, ffn_dim=64, vocab_size=32,
        norm_eps=1e-5, rope_theta=theta, context_length=8192, tied=False, rope_scaling=scaling,
    )  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e["name"])
def test_as_transformers(entry: dict[str, Any]) -> None:
    table = rope_table(from_hf(entry["config"]), entry["length"])
    # transformers raises theta to a float32 power, which is good to about ln(theta) / 2^24
    np.testing.assert_allclose(table.frequencies, entry["frequencies"], rtol=3e-6)
    assert table.attention_factor == pytest.approx(entry["attention_factor"], rel=1e-12)
    cos, sin = table.angles(entry["positions"])
    # and multiplies by the position in float32: about 1e-3 radians at position 8,300
    bound = np.array(entry["positions"])[:, None] * 4e-7 + 1e-6
    assert np.all(np.abs(cos - np.array(entry["cos"])) < bound * table.attention_factor)
    assert np.all(np.abs(sin - np.array(entry["sin"])) < bound * table.attention_factor)


def exact_angle(position: int, theta: float, index: int, head_dim: int) -> float:
    """position * theta^(-2 index / head_dim), reduced to a turn, with 60 digits."""
    getcontext().prec = 60
    two_pi = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
    angle = position * (Decimal(theta).ln() * Decimal(-2 * index) / head_dim).exp()
    return float(angle % two_pi)


@pytest.mark.parametrize("position", [0, 1, 8191, 8193, 100_000, 131_071, 10_000_000])
def test_angles_stay_exact_far_out(position: int) -> None:
    cos, sin = rope_table(config()).angles([position])
    for index in range(32):
        angle = exact_angle(position, 5e5, index, 64)
        assert abs(cos[0, index] - math.cos(angle)) < 1e-7
        assert abs(sin[0, index] - math.sin(angle)) < 1e-7


def test_angles_do_not_depend_on_the_other_positions() -> None:
    table = rope_table(config())
    together = table.angles(np.arange(1000))
    for position in (0, 7, 999):
        alone = table.angles([position])
        assert all(np.array_equal(a[position], b[0]) for a, b in zip(together, alone, strict=True))


def test_factors_are_what_gguf_stores_for_llama3() -> None:
    plain, scaled = rope_table(config()), rope_table(config(RopeScaling("llama3", factor=8.0)))
    factors = tuple(np.float32(x) for x in plain.frequencies / scaled.frequencies)
    assert factors[0] == 1
    assert factors[-1] == 8
    by_factors = rope_table(config(RopeScaling("factors", factors=factors)))
    np.testing.assert_allclose(by_factors.frequencies, scaled.frequencies, rtol=1e-7)


def test_factors_come_before_linear_scaling() -> None:
    factors = tuple(1.0 + i for i in range(32))
    table = rope_table(config(RopeScaling("linear", factor=2.0, factors=factors)))
    np.testing.assert_allclose(table.frequencies * 2 * factors, rope_table(config()).frequencies)


def test_dynamic_is_plain_within_the_context() -> None:
    cfg = config(RopeScaling("dynamic", factor=4.0))
    np.testing.assert_array_equal(rope_table(cfg).frequencies, rope_table(config()).frequencies)
    assert rope_table(cfg, 8193).frequencies[-1] < rope_table(config()).frequencies[-1]


def test_table_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        rope_table(config()).frequencies[0] = 2


def test_a_head_of_one_pair() -> None:
    for scaling in (None, RopeScaling("dynamic", factor=2.0), RopeScaling("yarn", factor=2.0)):
        assert rope_table(config(scaling, head_dim=2), 16384).frequencies.shape == (1,)
