"""Parts of a ModelConfig that not every Llama has: experts and the query temperature of Llama 4."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from puna.model.record import require


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts in place of the feed-forward of some layers (llama-models, llama4/moe.py).

    A router chooses `n_active` of `n_experts` for each token, whose sigmoid score multiplies the expert's
    input; the shared expert, where there is one, sees every token.
    """

    n_experts: int
    n_active: int  # experts that a token is sent to
    expert_ffn_dim: int
    shared_ffn_dim: int  # 0: no shared expert
    every: int = 1  # layers every-1, 2*every-1, ... have experts, the others a dense feed-forward

    def __post_init__(self) -> None:
        for name in ("n_experts", "expert_ffn_dim", "every"):
            value = getattr(self, name)
            require(0 < value < 2**31, f"experts {name}", "from 1 to 2147483647", value)
        require(0 <= self.shared_ffn_dim < 2**31, "experts shared_ffn_dim", "0 or more", self.shared_ffn_dim)
        expected = f"from 1 to the number of experts, {self.n_experts}"
        require(0 < self.n_active <= self.n_experts, "experts n_active", expected, self.n_active)


@dataclass(frozen=True, slots=True)
class QueryTemperature:
    """Queries of layers without rotary positions grow with their position (Nakanishi 2025, arXiv 2501.19399).

    The factor at position p is 1 + attn_scale * ln(floor((p + 1) / floor_scale) + 1).
    """

    floor_scale: float = 8192.0  # positions
    attn_scale: float = 0.1

    def __post_init__(self) -> None:
        for name in ("floor_scale", "attn_scale"):
            value = getattr(self, name)
            require(isfinite(value) and value > 0, f"query temperature {name}", "above 0", value)
