"""What a checkpoint says of itself: shapes and constants, validated; nothing of devices, caches or kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context. See rope.py for the formulas."""

    kind: Literal["linear", "llama3", "yarn", "factors"]
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_context: int = 8192  # llama3, yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    factors: tuple[float, ...] = ()  # "factors": each frequency is divided by its own (GGUF rope_freqs.weight)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A text decoder of Llama 1 to 3.3 shape."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    context_length: int  # positions the checkpoint was made for
    tied: bool  # output shares the embedding table
    rope_scaling: RopeScaling | None = None
