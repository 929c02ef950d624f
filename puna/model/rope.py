"""Rotary position tables (Su et al. 2021) with every scaling of the family, float64 until the last rounding.

A table is fixed when a model is loaded: the angle of a pair depends on its position alone, never on how
many tokens a sequence has so far, because keys already in the cache could not be turned again. Positions
beyond the context are computed by the same formula; refusing them is the engine's business.

Shapes: T positions, C head_dim (so C/2 rotated pairs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, pi

import numpy as np
from numpy.typing import NDArray

from puna.model.config import ModelConfig
from puna.model.scaling import RopeScaling

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RopeTable:
    """Radians per position of each rotated pair; the rotated vector is multiplied by `attention_factor`."""

    frequencies: Floats  # [C/2], read only
    attention_factor: float = 1.0

    def angles(
        self, positions: Sequence[int] | NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin of position * frequency, times the attention factor -> two float32 [T, C/2].

        The product and its cosine are float64: in float32 the angle itself would be off by up to 0.004
        radians at position 100,000.
        """
        angles_TC2 = np.multiply.outer(np.asarray(positions, np.float64), self.frequencies)
        cos_TC2, sin_TC2 = np.cos(angles_TC2), np.sin(angles_TC2)
        scale = self.attention_factor
        return (cos_TC2 * scale).astype(np.float32), (sin_TC2 * scale).astype(np.float32)


def rope_table(cfg: ModelConfig, context: int | None = None) -> RopeTable:
    """The table of a checkpoint, for sequences of up to `context` positions (default: the checkpoint's own).

    `context` matters to two scalings whose definition asks for the length of the sequence: dynamic NTK, and
    LongRoPE's choice between short and long factors. They get what transformers would use for a sequence of
    `context` positions, from the first token on, so that a token's key never depends on what comes after it.
    (transformers changes the base of dynamic NTK while it generates, and leaves cached keys as they are.)
    """
    frequencies_C2: Floats = cfg.rope_theta ** -(
        np.arange(0, cfg.head_dim, 2, dtype=np.float64) / cfg.head_dim
    )
    s = cfg.rope_scaling
    if s is not None:
        if s.factors:
            frequencies_C2 /= np.asarray(s.factors)
        frequencies_C2 = _scaled(frequencies_C2, s, cfg, cfg.context_length if context is None else context)
    frequencies_C2.setflags(write=False)
    return RopeTable(frequencies_C2, s.attention if s is not None else 1.0)


def _scaled(frequencies_C2: Floats, s: RopeScaling, cfg: ModelConfig, context: int) -> Floats:
    match s.kind:
        case "linear":
            return frequencies_C2 / s.factor
        case "dynamic":
            return _dynamic(frequencies_C2, s, cfg, context)
        case "llama3":
            return _llama3(frequencies_C2, s)
        case "yarn":
            return _yarn(frequencies_C2, s, cfg)
        case "longrope":
            long = context > s.original_context
            divisors_C2 = np.asarray(s.long_factors if long else s.short_factors, np.float64)
            return frequencies_C2 / divisors_C2
        case "factors":
            return frequencies_C2


def _dynamic(frequencies_C2: Floats, s: RopeScaling, cfg: ModelConfig, context: int) -> Floats:
    """NTK-aware: a larger base, which stretches the slow pairs by `stretch` and leaves the fastest as it is.

    The base grows by stretch^(C/(C-2)), so pair i slows down by stretch^(2i/(C-2)): transformers' `dynamic`.
    """
    stretch = s.factor * max(context, cfg.context_length) / cfg.context_length - (s.factor - 1)
    pair_C2 = np.arange(0, cfg.head_dim, 2, dtype=np.float64)
    slowed_C2: Floats = frequencies_C2 * stretch ** -(pair_C2 / max(cfg.head_dim - 2, 1))
    return slowed_C2


def _llama3(frequencies_C2: Floats, s: RopeScaling) -> Floats:
    """Llama 3.1 (Meta, llama-models): divide slow pairs by `factor`, keep the fast ones, blend between.

    A pair is slow when its wave is longer than original_context / low_freq_factor, fast when shorter than
    original_context / high_freq_factor. Equal factors leave no band to blend.
    """
    turns_C2 = s.original_context * frequencies_C2 / (2 * pi)
    band = s.high_freq_factor - s.low_freq_factor
    # a band of no width is a step: the division then gives -inf or a huge number, both clipped
    keep_C2 = (turns_C2 - s.low_freq_factor) / max(band, 1e-9)
    keep_C2 = np.clip(keep_C2, 0.0, 1.0)
    return frequencies_C2 * (keep_C2 + (1 - keep_C2) / s.factor)


def _yarn(frequencies_C2: Floats, s: RopeScaling, cfg: ModelConfig) -> Floats:
    """YaRN (Peng et al. 2023): keep pairs of over beta_fast turns, divide those of under beta_slow.

    Turns are counted over the original context. The blend between is linear in the index of the pair.
    """

    def index_of(turns: float) -> float:
        """The (fractional) index of the unscaled pair that makes so many turns."""
        return cfg.head_dim * log(s.original_context / (turns * 2 * pi)) / (2 * log(cfg.rope_theta))

    low, high = index_of(s.beta_fast), index_of(s.beta_slow)
    if s.truncate:
        low, high = float(np.floor(low)), float(np.ceil(high))
    low, high = max(low, 0.0), min(high, cfg.head_dim - 1.0)
    divide_C2 = np.clip((np.arange(cfg.head_dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    blended_C2: Floats = frequencies_C2 * (divide_C2 / s.factor + (1 - divide_C2))
    return blended_C2
