"""What a Llama may have that another lacks, each as a tiny model of transformers that has it.

A feature is data: the settings of transformers' own configuration class, how long a sequence shows it, and
what of our ModelConfig has to be changed to leave it out (a comparison that passes without it shows nothing).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHORT = 96  # tokens
LONG = 8300  # beyond position 8,192, where chunks of Llama 4 end and its queries begin to grow


@dataclass(frozen=True)
class Feature:
    name: str
    shows: str  # for the table
    settings: dict[str, Any]
    llama4: bool = False
    n_tokens: int = SHORT
    without: dict[str, Any] = field(default_factory=dict)  # of ModelConfig; none: cannot be left out


_DENSE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
_LLAMA4: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "intermediate_size_mlp": 160,
    "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "max_position_embeddings": 16384, "attention_chunk_size": 8192, "num_local_experts": 4,
    "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "use_qk_norm": True,
    "attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1, "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "router_aux_loss_coef": 0.0,
    "tie_word_embeddings": False, "no_rope_layers": [1, 1, 1, 0],
}  # fmt: skip
_LONGROPE = {
    "type": "longrope", "original_max_position_embeddings": 4096, "factor": 4.0,
    "short_factor": [1.0 + 0.02 * i for i in range(16)], "long_factor": [1.0 + 0.4 * i for i in range(16)],
}  # fmt: skip


def _llama3(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2048,
    }  # fmt: skip


def _llama4_scaling() -> dict[str, Any]:
    return _llama3(16.0) | {"high_freq_factor": 1.0, "rope_theta": 5e5}


def _dense(name: str, shows: str, without: dict[str, Any] | None = None, **settings: Any) -> Feature:
    n_tokens = settings.pop("n_tokens", SHORT)
    return Feature(name, shows, _DENSE | settings, n_tokens=n_tokens, without=without or {})


def _rope(name: str, shows: str, without: dict[str, Any] | None = None, **settings: Any) -> Feature:
    """One head is enough for positions, and keeps thousands of them cheap."""
    one_head = {"num_attention_heads": 1, "num_key_value_heads": 1, "n_tokens": LONG}
    return _dense(name, shows, without or {"rope_scaling": None}, **(one_head | settings))


def _moe(name: str, shows: str, without: dict[str, Any] | None = None, **settings: Any) -> Feature:
    n_tokens = settings.pop("n_tokens", SHORT)
    return Feature(name, shows, _LLAMA4 | settings, True, n_tokens, without or {})


_SMALL_CHUNKS = {"attention_chunk_size": 32, "floor_scale": 16}

FEATURES = {
    feature.name: feature
    for feature in (
        _dense("mha", "multi-head attention (Llama 1, Llama 2 7B)", num_key_value_heads=4),
        _dense("gqa", "grouped-query attention (Llama 2 70B, Llama 3)"),
        _dense("mqa", "one key/value head", num_key_value_heads=1),
        _dense("tied", "output tied to the embeddings (Llama 3.2 1B, 3B)", tie_word_embeddings=True),
        _rope("theta_1e6", "Code Llama's theta", {"rope_theta": 1e4}, rope_theta=1e6),
        _rope("theta_5e5", "Llama 3's theta", {"rope_theta": 1e4}, rope_theta=5e5),
        _rope("rope_llama3_8", "Llama 3.1's scaling by 8", rope_theta=5e5, rope_scaling=_llama3(8.0)),
        _rope("rope_llama3_32", "Llama 3.2's scaling by 32", rope_theta=5e5, rope_scaling=_llama3(32.0)),
        _rope("rope_linear", "linear scaling", rope_scaling={"type": "linear", "factor": 4.0}),
        _rope("rope_dynamic", "dynamic NTK", max_position_embeddings=4096,
              rope_scaling={"type": "dynamic", "factor": 2.0}),
        _rope("rope_yarn", "YaRN",
              rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}),
        _rope("rope_longrope", "LongRoPE", rope_scaling=_LONGROPE),
        _moe("experts", "experts in every layer, and a shared one (Scout)", {"qk_norm": False}),
        _moe("experts_interleaved", "experts in every second layer, no QK norm (Maverick)",
             interleave_moe_layer_step=2, use_qk_norm=False),
        _moe("two_experts", "two experts for each token", num_experts_per_tok=2),
        _moe("rope_llama4", "Scout's rope scaling", {"rope_scaling": None},
             rope_parameters=_llama4_scaling(), n_tokens=LONG),
        _moe("small_chunks", "chunked attention, many chunks", {"attention_chunk": None}, **_SMALL_CHUNKS),
        _moe("chunk_8192", "chunked attention across position 8,192", {"attention_chunk": None},
             n_tokens=LONG),
        _moe("query_temperature", "queries that grow beyond position 8,192", {"query_temperature": None},
             attn_scale=0.5, n_tokens=LONG),
        _moe("no_rope", "every fourth layer without rope", {"no_rope_every": None}, **_SMALL_CHUNKS),
    )
}  # fmt: skip
