"""Inputs for every op of table.py and one table of tolerances, for tests of any executor and for timing.

A case is a few numbers; its arrays come from a seeded generator, so that nothing is stored. Weights in a
block format are made by weights.quant.random_blocks from `case.kind`, `case.shape` and `case.rng()`. The
expected result is NumpyOps's. A result is right when

    error(got, expected, case.unit(...)) <= TOLERANCES[op, arithmetic]

where the unit is what an error is measured in: for a sum, the size that rounding of its terms scales with,
not the sum itself, which may be near zero.

Shapes: T tokens, D inputs, E outputs, H query heads, K key/value heads, C head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch, Chunk

Array = NDArray[np.float32]

# Block formats whose rows are cut in blocks of 32 (or single) values, and of 256.
NARROW_KINDS = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4",
    "INT4", "INT4_MIN", "INT8", "INT8_16", "FP8",
)  # fmt: skip
WIDE_KINDS = (
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0",
)  # fmt: skip

# (op, arithmetic) -> the largest error in units. `exact` means equal bits. For linear the arithmetic is the
# type that activations are rounded to before they are multiplied (int8: a scale for every 32 values); for
# attend it is the type of the cache. Rounding of x by a relative r moves a sum of D terms by about r |x|
# |w| / sqrt(D), one unit; the worst of some ten thousand outputs lies at 4 to 5 times the standard
# deviation.
TOLERANCES = {
    ("embed", "float32"): 1e-6,  # one rounding, fused or not
    ("add", "exact"): 0.0,
    ("select", "exact"): 0.0,
    ("linear", "float32"): 2e-5,
    ("linear", "bf16"): 1e-2,  # r = 2^-9 at most
    ("linear", "int8"): 4e-2,  # r = 1/254 of the block's largest value, 2 to 4 times its typical one
    ("rms_norm", "float32"): 2e-6,
    ("rope", "float32"): 1e-6,
    ("swiglu", "float32"): 2e-6,
    ("layer_norm", "float32"): 4e-6,  # of x's own size: the mean is subtracted first
    ("gelu", "float32"): 1e-6,  # of |x|
    ("attend", "F32"): 1e-5,
    ("attend", "F16"): 2e-3,  # the cases' keys and values are exact in F16 and BF16: this is for q
    ("attend", "BF16"): 1e-2,
    ("attend", "Q8_0"): 4e-2,
}


def error(got: Array, expected: Array, unit: Array | float) -> float:
    """The largest difference in units; infinite where shapes differ or a result is not a number."""
    if got.shape != expected.shape:
        return float("inf")
    errors = np.abs(got.astype(np.float64) - expected) / unit
    return float(np.where(np.isnan(errors), np.inf, errors).max(initial=0.0))


def _activations(rng: np.random.Generator, *shape: int) -> Array:
    """Gaussian with a few values ten times as large, as the residual stream of a trained model has."""
    x = rng.standard_normal(shape, np.float32)
    x[rng.random(shape) < 0.002] *= 10
    return x


@dataclass(frozen=True, slots=True)
class LinearCase:
    op: ClassVar[str] = "linear"
    kind: str  # block format of the weight
    n_tokens: int
    n_out: int
    n_in: int
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(E, D) of the weight."""
        return self.n_out, self.n_in

    def rng(self) -> np.random.Generator:
        return np.random.default_rng((self.seed, *self.shape))

    def x_TD(self) -> Array:
        return _activations(np.random.default_rng((self.seed, self.n_tokens)), self.n_tokens, self.n_in)

    @staticmethod
    def unit(x_TD: Array, w_ED: Array) -> Array:
        """|x| |w| / sqrt(D): the typical size of an output -> [T, E]."""
        norms_TE = np.outer(np.linalg.norm(x_TD, axis=1), np.linalg.norm(w_ED, axis=1))
        unit_TE: Array = np.maximum(norms_TE / np.sqrt(x_TD.shape[1]), 1e-30).astype(np.float32)
        return unit_TE


@dataclass(frozen=True, slots=True)
class EmbedCase:
    op: ClassVar[str] = "embed"
    kind: str
    n_tokens: int
    vocab_size: int
    dim: int
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.vocab_size, self.dim

    def rng(self) -> np.random.Generator:
        return np.random.default_rng((self.seed, *self.shape))

    def batch(self) -> Batch:
        tokens = np.random.default_rng(self.seed).integers(0, self.vocab_size, self.n_tokens).tolist()
        return Batch([Chunk(tokens, 0, [0], 1)])

    @staticmethod
    def unit(w_VD: Array) -> float:
        return max(float(np.abs(w_VD).max()), 1e-30)


@dataclass(frozen=True, slots=True)
class RmsNormCase:
    op: ClassVar[str] = "rms_norm"
    n_tokens: int
    dim: int
    eps: float = 1e-5
    magnitude: float = 1.0
    seed: int = 0

    def inputs(self) -> tuple[Array, Array]:
        """x [T, D] and the weight [D]."""
        rng = np.random.default_rng(self.seed)
        x_TD = _activations(rng, self.n_tokens, self.dim) * np.float32(self.magnitude)
        w_D: Array = 1 + rng.standard_normal(self.dim, np.float32) / np.float32(4)
        return x_TD, w_D

    @staticmethod
    def unit(expected_TD: Array) -> Array:
        return np.maximum(np.abs(expected_TD), np.float32(1e-30))


@dataclass(frozen=True, slots=True)
class RopeCase:
    op: ClassVar[str] = "rope"
    n_tokens: int
    n_heads: int
    head_dim: int
    start: int = 0  # position of the first token
    theta: float = 10000.0
    attention_factor: float = 1.0
    seed: int = 0

    def x_THC(self) -> Array:
        rng = np.random.default_rng(self.seed)
        return rng.standard_normal((self.n_tokens, self.n_heads * self.head_dim), np.float32)

    @staticmethod
    def unit(x_THC: Array) -> float:
        return float(np.abs(x_THC).max())


@dataclass(frozen=True, slots=True)
class SwigluCase:
    op: ClassVar[str] = "swiglu"
    n_tokens: int
    ffn_dim: int
    magnitude: float = 1.0
    seed: int = 0

    def inputs(self) -> tuple[Array, Array]:
        """gate and up, both [T, F]."""
        rng = np.random.default_rng(self.seed)
        gate_TF = _activations(rng, self.n_tokens, self.ffn_dim) * np.float32(self.magnitude)
        return gate_TF, _activations(rng, self.n_tokens, self.ffn_dim)

    @staticmethod
    def unit(gate_TF: Array, up_TF: Array) -> Array:
        unit_TF: Array = np.maximum(np.abs(gate_TF * up_TF), np.float32(1e-30))
        return unit_TF


@dataclass(frozen=True, slots=True)
class LayerNormCase:
    op: ClassVar[str] = "layer_norm"
    n_rows: int
    dim: int
    mean: float = 0.0
    eps: float = 1e-5
    seed: int = 0

    def inputs(self) -> tuple[Array, Array, Array]:
        """x [X, D], the weight [D] and the bias [D]."""
        rng = np.random.default_rng(self.seed)
        x_XD = _activations(rng, self.n_rows, self.dim) + np.float32(self.mean)
        w_D: Array = 1 + rng.standard_normal(self.dim, np.float32) / np.float32(4)
        return x_XD, w_D, rng.standard_normal(self.dim, np.float32)

    @staticmethod
    def unit(x_XD: Array) -> float:
        return max(1.0, float(np.abs(x_XD).max() / x_XD.std()))


@dataclass(frozen=True, slots=True)
class GeluCase:
    op: ClassVar[str] = "gelu"
    n_rows: int
    ffn_dim: int
    magnitude: float = 1.0
    seed: int = 0

    def x_XF(self) -> Array:
        rng = np.random.default_rng(self.seed)
        return _activations(rng, self.n_rows, self.ffn_dim) * np.float32(self.magnitude)

    @staticmethod
    def unit(x_XF: Array) -> Array:
        return np.maximum(np.abs(x_XF), np.float32(1e-30))


@dataclass(frozen=True, slots=True)
class AttendCase:
    """One step over several sequences; each has `past` positions in the cache and brings `new` ones."""

    op: ClassVar[str] = "attend"
    sequences: tuple[tuple[int, int], ...]  # (past, new) positions
    n_heads: int
    n_kv_heads: int
    head_dim: int
    block_size: int = 16
    seed: int = 0
    chunk: int | None = None  # of attention

    @property
    def n_blocks(self) -> int:
        return sum(-(-(past + new) // self.block_size) for past, new in self.sequences) + 3

    @property
    def scale(self) -> float:
        return 1.0 / sqrt(self.head_dim)

    def steps(self) -> Iterator[tuple[Batch, Array, Array, Array]]:
        """(batch, q_THC, k_TKC, v_TKC) of the step that fills the cache, if there is a past, and of the one
        to compare. Blocks are dealt out at random, and a few belong to nobody."""
        rng = np.random.default_rng(self.seed)
        free = rng.permutation(self.n_blocks).tolist()
        tables = [
            [free.pop() for _ in range(-(-(past + new) // self.block_size))] for past, new in self.sequences
        ]
        spans = [(0, past) for past, _ in self.sequences]
        if any(n for _, n in spans):
            yield self._step(rng, spans, tables)
        yield self._step(rng, list(self.sequences), tables)

    def _step(
        self, rng: np.random.Generator, spans: list[tuple[int, int]], tables: list[list[int]]
    ) -> tuple[Batch, Array, Array, Array]:
        chunks = [Chunk([0] * n, start, t, 1) for (start, n), t in zip(spans, tables, strict=True) if n]
        n_tokens = sum(len(chunk.tokens) for chunk in chunks)
        q_THC = 2 * rng.standard_normal((n_tokens, self.n_heads * self.head_dim), np.float32)
        width = self.n_kv_heads * self.head_dim
        return Batch(chunks), q_THC, _short(rng, n_tokens, width), _short(rng, n_tokens, width)

    @staticmethod
    def unit(v_TKC: Array) -> float:
        return float(np.abs(v_TKC).max())


def _short(rng: np.random.Generator, *shape: int) -> Array:
    """Gaussian in steps of 1/16 within +-4: exact in F16 and BF16, so that a cache of those adds no error."""
    sixteenths = (rng.standard_normal(shape, np.float32) * 16).round().clip(-64, 64)
    return (sixteenths / 16).astype(np.float32)


# Tokens of a step: one, the tails of every tile size up to 32, and more than one tile.
TOKENS = (1, 2, 3, 5, 7, 12, 13, 31, 33, 100)
_NARROW_SHAPES = ((40, 96), (1, 32), (33, 64), (192, 576), (17, 2080))  # (E, D)
_WIDE_SHAPES = ((40, 512), (1, 256), (33, 768), (192, 256), (17, 4352))


def _linear_cases() -> Iterator[LinearCase]:
    for kind in NARROW_KINDS + WIDE_KINDS:
        first, *others = _WIDE_SHAPES if kind in WIDE_KINDS else _NARROW_SHAPES
        for n_tokens in TOKENS:
            yield LinearCase(kind, n_tokens, *first)
        for shape in others:
            for n_tokens in (1, 3, 33):
                yield LinearCase(kind, n_tokens, *shape)


def _attend_cases() -> Iterator[AttendCase]:
    edges = (
        1,
        2,
        15,
        16,
        17,
        31,
        32,
        33,
        63,
        64,
        65,
        127,
        129,
        200,
        513,
    )  # around the ends of blocks of 16 and 64
    for ratio in (1, 3, 4, 8):
        for head_dim in (32, 64, 128):
            yield AttendCase(((0, 33), (70, 1), (15, 2)), 2 * ratio, 2, head_dim)
    for n in edges:
        yield AttendCase(((n, 1),), 4, 1, 64)  # decode
        yield AttendCase(((0, n),), 3, 3, 32)  # prefill
        yield AttendCase(((n, 7),), 8, 2, 64, block_size=64)  # a later chunk
    yield AttendCase(tuple((n, 1) for n in edges), 9, 3, 64)  # a batch that decodes at many depths
    yield AttendCase(((0, 100), (40, 31), (129, 1), (64, 5), (0, 1)), 8, 2, 64)  # everything at once
    yield AttendCase(((3, 5), (0, 12)), 4, 2, 64, block_size=1)


LINEAR = tuple(_linear_cases())
ATTEND = tuple(_attend_cases())
EMBED = tuple(
    EmbedCase(kind, 13, 50, 512 if kind in WIDE_KINDS else 96) for kind in NARROW_KINDS + WIDE_KINDS
)
RMS_NORM = tuple(
    RmsNormCase(t, dim, eps, magnitude)
    for t in (1, 3, 33)
    for dim in (32, 576, 2048)
    for eps, magnitude in ((1e-5, 1.0), (1e-6, 1e-4), (1e-5, 1e4))
)
ROPE = tuple(
    RopeCase(t, n_heads, head_dim, start, theta, factor)
    for t in (1, 5, 33)
    for n_heads, head_dim in ((1, 2), (3, 32), (9, 64), (4, 128))
    for start, theta, factor in ((0, 1e4, 1.0), (8190, 5e5, 1.0), (131000, 5e5, 1.25))
)
SWIGLU = tuple(SwigluCase(t, f, m) for t in (1, 3, 33) for f in (32, 1536) for m in (1.0, 30.0))
LAYER_NORM = tuple(
    LayerNormCase(x, dim, mean, eps)
    for x in (1, 33)
    for dim in (48, 1280)
    for mean, eps in ((0.0, 1e-5), (9.0, 1e-6))
)
GELU = tuple(GeluCase(x, f, m) for x in (1, 33) for f in (48, 5120) for m in (1.0, 30.0))
