"""The GGUF metadata of a Llama 4 text decoder, as llama.cpp writes and reads it."""

from __future__ import annotations

from collections.abc import Mapping

from puna.core import Unsupported
from puna.model.config import ModelConfig, QueryTemperature
from puna.weights.describe.config import gguf_metadata
from puna.weights.files.values import Value, ValueType

_SIGMOID = 2  # llama.cpp's expert_gating_func of routers that score by a sigmoid
# What llama.cpp's loader takes for granted in files that do not switch chunks off.
_TAKEN_FOR_GRANTED = {
    "attention_chunk": 8192,
    "no_rope_every": 4,
    "query_temperature": QueryTemperature(),
}


def llama4_metadata(config: ModelConfig) -> Mapping[str, Value]:
    """What from_gguf of model/config.py reads back as `config`. Raises Unsupported for what it cannot say."""
    experts = config.experts
    if experts is None:
        raise Unsupported("GGUF metadata of Llama 4 without experts is not written; choose another shape")
    expected = _TAKEN_FOR_GRANTED | {"qk_norm": experts.n_experts != 128}
    for name, value in expected.items():
        found = getattr(config, name)
        if found != value:
            raise Unsupported(f"a GGUF file of Llama 4 stands for {name} {value}, and this model has {found}")
    if experts.shared_ffn_dim != experts.expert_ffn_dim:
        raise Unsupported(
            "a GGUF file of Llama 4 stands for a shared expert as wide as the others, "
            f"{experts.expert_ffn_dim}, and this model's is {experts.shared_ffn_dim} wide"
        )
    entries = gguf_metadata(config)
    own = {
        "expert_count": experts.n_experts,
        "expert_used_count": experts.n_active,
        "expert_feed_forward_length": experts.expert_ffn_dim,
        "expert_shared_feed_forward_length": experts.shared_ffn_dim,
        "interleave_moe_layer_step": experts.every,
        "expert_gating_func": _SIGMOID,
    }
    renamed = {key.replace("llama.", "llama4.", 1): value for key, value in entries.items()}
    renamed["general.architecture"] = Value.of(ValueType.STRING, "llama4")
    return renamed | {f"llama4.{key}": Value.of(ValueType.UINT32, value) for key, value in own.items()}
