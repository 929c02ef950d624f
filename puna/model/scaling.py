"""What a checkpoint says of stretching its rotary frequencies; rope.py turns it into numbers.

Two spellings are read: GGUF's rope.scaling.* keys with their factor tensors, and transformers' rope settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log, sqrt
from typing import Literal

from puna.core import BadFile, Unsupported, closest
from puna.model.record import Record, require

ScalingKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope", "factors"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context. See rope.py for the formulas."""

    kind: ScalingKind
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_context: int = 8192  # llama3, yarn, longrope: positions of the first training
    attention_factor: float | None = None  # yarn, longrope; None: by the formula in `attention`
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the blend band outwards to whole frequencies
    factors: tuple[float, ...] = ()  # each frequency is first divided by its own (GGUF rope_freqs.weight)
    short_factors: tuple[float, ...] = ()  # longrope, contexts up to original_context
    long_factors: tuple[float, ...] = ()  # longrope, longer contexts

    def __post_init__(self) -> None:
        positive = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        for name in positive:
            value = getattr(self, name)
            require(isfinite(value) and value > 0, f"rope scaling {name}", "above 0", value)
        require(self.original_context > 1, "rope scaling original_context", "above 1", self.original_context)
        good = isfinite(self.attention) and self.attention > 0
        require(good, "rope scaling attention_factor", "above 0", self.attention)
        pair = (self.low_freq_factor, self.high_freq_factor)
        require(pair[0] <= pair[1], "rope scaling low_freq_factor, high_freq_factor", "in rising order", pair)
        pair = (self.beta_slow, self.beta_fast)
        require(pair[0] <= pair[1], "rope scaling beta_slow, beta_fast", "in rising order", pair)
        for name in ("factors", "short_factors", "long_factors"):
            good = all(isfinite(x) and x > 0 for x in getattr(self, name))
            require(good, f"rope scaling {name}", "positive numbers", getattr(self, name))

    @property
    def attention(self) -> float:
        """What cos and sin are multiplied by: as stated, else by the method's own formula.

        YaRN: 0.1 ln(factor) + 1. LongRoPE: sqrt(1 + ln(factor) / ln(original_context)) (Ding et al. 2024).
        """
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "yarn":
            return yarn_mscale(self.factor)
        if self.kind == "longrope" and self.factor > 1.0:
            return sqrt(1.0 + log(self.factor) / log(self.original_context))
        return 1.0


def _unknown_rope(kind: str, known: Sequence[str]) -> Unsupported:
    return Unsupported(
        f"rope scaling {kind!r} is unknown{closest(kind, known)}; Puna computes {', '.join(known)}"
    )


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's 0.1 mscale ln(factor) + 1 (Peng et al. 2023, section 3.4); 1 where factor is at most 1."""
    require(mscale >= 0, "the multiplier of YaRN's attention factor", "0 or more", mscale)
    return 0.1 * mscale * log(factor) + 1.0 if factor > 1.0 else 1.0


def gguf_scaling(
    record: Record,
    arch: str,
    tensor_shapes: Mapping[str, tuple[int, ...]],
    read_floats: Callable[[str], Sequence[float]] | None,
    head_dim: int,
    context_length: int,
) -> RopeScaling | None:
    """rope.scaling.* and the factor tensors, as llama.cpp combines them."""

    def read(name: str) -> tuple[float, ...]:
        if name not in tensor_shapes:
            raise BadFile(
                f"rope scaling 'longrope' needs the tensor {name!r}, and the file has none; convert it again"
            )
        require(
            tensor_shapes[name] == (head_dim // 2,), name, f"shape {(head_dim // 2,)}", tensor_shapes[name]
        )
        assert read_floats is not None, "a file with rope factors needs read_floats"
        return tuple(float(x) for x in read_floats(name))

    kind = record.text(f"{arch}.rope.scaling.type", "linear")
    factor = (
        record.number(f"{arch}.rope.scaling.factor", record.number(f"{arch}.rope.scale_linear", 1.0)) or 1.0
    )
    original_context = record.integer(f"{arch}.rope.scaling.original_context_length", context_length)
    attention_factor = record.number(f"{arch}.rope.scaling.attn_factor", 1.0)
    if kind == "longrope":
        return RopeScaling(
            "longrope",
            original_context=original_context,
            attention_factor=attention_factor,
            short_factors=read("rope_factors_short.weight"),
            long_factors=read("rope_factors_long.weight"),
        )
    factors = read("rope_freqs.weight") if "rope_freqs.weight" in tensor_shapes else ()
    if kind == "yarn":
        log_multiplier = record.number(f"{arch}.rope.scaling.yarn_log_multiplier", 0.0)
        mscale = yarn_mscale(factor) / yarn_mscale(factor, log_multiplier)
        return RopeScaling(
            "yarn",
            factor=factor,
            original_context=original_context,
            attention_factor=mscale * attention_factor,
            beta_fast=record.number(f"{arch}.rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=record.number(f"{arch}.rope.scaling.yarn_beta_slow", 1.0),
            factors=factors,
        )
    record.refuse_unless(
        f"{arch}.rope.scaling.attn_factor", 1.0, f"an attention factor with {kind!r} rope scaling"
    )
    if kind not in ("none", "linear"):
        raise _unknown_rope(kind, ("none", "linear", "yarn", "longrope"))
    if kind == "linear" and factor != 1.0:
        return RopeScaling("linear", factor=factor, factors=factors)
    return RopeScaling("factors", factors=factors) if factors else None


_HF_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
}
_HF_ROPE_COMMON = (
    "type", "rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
    "finetuned",
)  # fmt: skip


def hf_scaling(rope: Record, record: Record, context_length: int) -> RopeScaling | None:
    """The scaling that transformers' ROPE_INIT_FUNCTIONS would compute from these settings."""
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in _HF_ROPE_KEYS:
        raise _unknown_rope(kind, tuple(_HF_ROPE_KEYS))
    rope.refuse_unknown(_HF_ROPE_KEYS[kind] + _HF_ROPE_COMMON)
    rope.refuse_unless("partial_rotary_factor", 1.0, "partly rotated heads")
    stated = rope.integer("original_max_position_embeddings", context_length)
    original_context = record.integer("original_max_position_embeddings", stated)
    if kind == "linear":
        return RopeScaling("linear", factor=rope.number("factor"))
    if kind == "dynamic":
        return RopeScaling("dynamic", factor=rope.number("factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_context=original_context,
        )
    require(original_context > 0, "original_max_position_embeddings", "1 or more", original_context)
    factor = rope.number("factor", context_length / original_context)
    if kind == "yarn":
        return _hf_yarn(rope, factor, original_context)
    return _hf_longrope(rope, factor, original_context) if kind == "longrope" else None


def _hf_yarn(rope: Record, factor: float, original_context: int) -> RopeScaling:
    stated = rope.number("attention_factor") if rope.has("attention_factor") else None
    mscale, all_dim = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    if stated is None and mscale and all_dim:
        stated = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_context=original_context,
        attention_factor=stated,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
    )


def _hf_longrope(rope: Record, factor: float, original_context: int) -> RopeScaling:
    return RopeScaling(
        "longrope",
        factor=factor,
        original_context=original_context,
        attention_factor=rope.number("attention_factor") if rope.has("attention_factor") else None,
        short_factors=rope.numbers("short_factor"),
        long_factors=rope.numbers("long_factor"),
    )
