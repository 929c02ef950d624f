"""Cases of the ops that Llama 4 alone has; cases.py says how they are used.

Shapes: T tokens, D width, H heads, C head width, E experts, F their width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from puna.ops.cases import NARROW_KINDS, WIDE_KINDS, Array, AttendCase, LinearCase

# Experts: rounding of activations by a relative r moves an output three times, by way of w1, w3 and w2, so
# about twice as far as in one linear.
TOLERANCES = {
    ("head_norm", "float32"): 2e-6,
    ("temper", "float32"): 1e-6,
    ("experts", "float32"): 5e-5,
    ("experts", "bf16"): 2e-2,
    ("experts", "int8"): 8e-2,
}


@dataclass(frozen=True, slots=True)
class HeadNormCase:
    op: ClassVar[str] = "head_norm"
    n_tokens: int
    n_heads: int
    head_dim: int
    eps: float = 1e-5
    seed: int = 0

    def x_THC(self) -> Array:
        rng = np.random.default_rng(self.seed)
        return 3 * rng.standard_normal((self.n_tokens, self.n_heads * self.head_dim), np.float32)


@dataclass(frozen=True, slots=True)
class Temperature:
    """Stands for model.parts.QueryTemperature."""

    floor_scale: float = 8192.0
    attn_scale: float = 0.1


@dataclass(frozen=True, slots=True)
class TemperCase:
    op: ClassVar[str] = "temper"
    n_tokens: int
    start: int  # position of the first token
    temperature: Temperature
    width: int = 96
    seed: int = 0

    def x_THC(self) -> Array:
        return np.random.default_rng(self.seed).standard_normal((self.n_tokens, self.width), np.float32)


@dataclass(frozen=True, slots=True)
class ExpertsCase:
    op: ClassVar[str] = "experts"
    kinds: tuple[str, str, str]  # block formats of w1, w2 and w3
    n_tokens: int
    dim: int
    ffn_dim: int
    n_experts: int = 4
    n_active: int = 1
    seed: int = 0

    def weight(self, i: int) -> LinearCase:
        """Kind, shape [E * rows, cols] and generator of w1, w2 or w3 (i is 0, 1 or 2), experts stacked."""
        rows, cols = (self.dim, self.ffn_dim) if i == 1 else (self.ffn_dim, self.dim)
        return LinearCase(self.kinds[i], self.n_tokens, self.n_experts * rows, cols, self.seed + i)

    def router_ED(self) -> Array:
        return np.random.default_rng(self.seed).standard_normal(
            (self.n_experts, self.dim), np.float32
        ) / np.float32(8)

    def x_TD(self) -> Array:
        return np.random.default_rng((self.seed, 1)).standard_normal((self.n_tokens, self.dim), np.float32)

    @staticmethod
    def unit(expected_TD: Array) -> Array:
        """The typical size of an output of each token -> [T, 1]."""
        size_T1 = np.linalg.norm(expected_TD, axis=1, keepdims=True) / sqrt(expected_TD.shape[1])
        unit_T1: Array = size_T1.astype(np.float32)
        return unit_T1


HEAD_NORM = tuple(HeadNormCase(t, h, c) for t in (1, 5) for h, c in ((1, 32), (4, 128)))
TEMPER = tuple(
    TemperCase(t, start, temperature)
    for t in (1, 5)
    for start, temperature in (
        (0, Temperature()),
        (8189, Temperature()),  # floor((position + 1) / 8192) goes from 0 to 1 within five tokens
        (1_000_000, Temperature(16, 0.5)),
    )
)


def _chunked() -> Iterator[AttendCase]:
    """Around the ends of chunks, whose lengths are or are not whole numbers of blocks or of spans of 256."""
    for chunk in (1, 16, 40, 256):
        yield AttendCase(((chunk - 1, 1), (chunk, 1), (2 * chunk - 1, 2)), 4, 2, 32, chunk=chunk)
    for chunk in (16, 40):
        yield AttendCase(((0, 2 * chunk + 3), (chunk - 1, 33)), 4, 1, 64, chunk=chunk)
    yield AttendCase(((700, 1), (300, 7), (0, 330)), 2, 1, 32, chunk=300)


CHUNKED = tuple(_chunked())


def _experts() -> Iterator[ExpertsCase]:
    for kind in NARROW_KINDS + WIDE_KINDS:
        width = 512 if kind in WIDE_KINDS else 96
        for n_tokens, n_active in ((1, 1), (13, 2), (100, 1)):
            yield ExpertsCase((kind, kind, kind), n_tokens, width, width, n_active=n_active)
    for n_tokens in (3, 70):
        yield ExpertsCase(("Q4_K", "Q6_K", "Q4_K"), n_tokens, 256, 512, n_experts=7, n_active=3)
        yield ExpertsCase(("Q4_K", "Q8_0", "Q5_K"), n_tokens, 256, 96, n_active=4)  # gates unlike ups
        yield ExpertsCase(("F32", "Q4_0", "BF16"), n_tokens, 96, 160)
    yield ExpertsCase(("Q4_0", "Q4_0", "Q4_0"), 400, 64, 96, n_experts=2)  # many tokens for each
    yield ExpertsCase(("Q8_0", "Q8_0", "Q8_0"), 5, 64, 32, n_experts=1)


EXPERTS = tuple(_experts())
