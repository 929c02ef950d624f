"""Llama 4 as config.json and params.json state it. What they cannot say is refused.

The readers are in model/read_llama4.py.
"""

from __future__ import annotations

from typing import Any

from puna.core import Unsupported
from puna.model.config import ModelConfig, from_meta
from puna.model.vision_config import Llama4VisionConfig

# ids of the released vocabulary; others are left to transformers' defaults
_IMAGE_TOKENS = {"boi_token_index": 200080, "eoi_token_index": 200081, "image_token_index": 200092}


def hf_llama4_config(config: ModelConfig, common: dict[str, Any]) -> dict[str, Any]:
    """config.json of Llama4ForConditionalGeneration, or of Llama4ForCausalLM for a model without images.

    `common` holds the keys that every Llama has there.
    """
    text = _text(config, common)
    if config.vision is None:
        return {"architectures": ["Llama4ForCausalLM"], **text}
    assert isinstance(config.vision, Llama4VisionConfig)
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "torch_dtype": text["torch_dtype"],
        "tie_word_embeddings": config.tied,
        **(_IMAGE_TOKENS if config.vocab_size > max(_IMAGE_TOKENS.values()) else {}),
        "text_config": text,
        "vision_config": _vision(config.vision),
    }


def _text(config: ModelConfig, common: dict[str, Any]) -> dict[str, Any]:
    experts, layers = config.experts, range(config.n_layers)
    text = {k: v for k, v in common.items() if k not in ("architectures", "mlp_bias", "intermediate_size")}
    text |= {
        "model_type": "llama4_text",
        "intermediate_size_mlp": config.ffn_dim,
        "use_qk_norm": config.qk_norm,
        "attention_chunk_size": config.attention_chunk,
        "no_rope_layers": [int(config.has_rope(i)) for i in layers],
        "layer_types": ["full_attention" if config.chunk(i) is None else "chunked_attention" for i in layers],
        "attn_temperature_tuning": config.query_temperature is not None,
        "interleave_moe_layer_step": config.n_layers + 1,  # no layer has experts
        "moe_layers": [i for i in layers if config.has_experts(i)],
    }
    if config.query_temperature is not None:
        text["floor_scale"] = _whole(config.query_temperature.floor_scale)
        text["attn_scale"] = config.query_temperature.attn_scale
    if experts is not None:
        if experts.shared_ffn_dim != experts.expert_ffn_dim:
            raise Unsupported(
                f"config.json has one width for all experts, and this model's are {experts.expert_ffn_dim} "
                f"and shared {experts.shared_ffn_dim}; keep the model in its format"
            )
        text |= {
            "intermediate_size": experts.expert_ffn_dim,
            "num_local_experts": experts.n_experts,
            "num_experts_per_tok": experts.n_active,
            "interleave_moe_layer_step": experts.every,
        }
    return text


def _whole(value: float) -> float:
    """A whole number as one: transformers takes no other for this key."""
    return int(value) if value == int(value) else value


def _vision(vision: Llama4VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "llama4_vision_model",
        "hidden_act": "gelu",
        "hidden_size": vision.dim,
        "image_size": vision.tile_size,
        "intermediate_size": vision.ffn_dim,
        "multi_modal_projector_bias": False,
        "norm_eps": vision.norm_eps,
        "num_attention_heads": vision.n_heads,
        "num_channels": 3,
        "num_hidden_layers": vision.n_layers,
        "patch_size": vision.patch_size,
        "pixel_shuffle_ratio": vision.pixel_shuffle,
        "projector_input_dim": vision.adapter_dim,
        "projector_output_dim": vision.adapter_dim,
        "vision_output_dim": vision.adapter_dim,
        "rope_theta": vision.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": vision.rope_theta},
    }


def meta_llama4_params(config: ModelConfig, common: dict[str, Any]) -> dict[str, Any]:
    """params.json of Llama 4 (llama-models, llama4/args.py), without the rule for widths."""
    params = {**common, "rope_theta": config.rope_theta, "use_qk_norm": config.qk_norm}
    if config.attention_chunk is not None:
        params["attention_chunk_size"] = config.attention_chunk
    if config.no_rope_every is not None:
        params["nope_layer_interval"] = config.no_rope_every
    if config.query_temperature is not None:
        params["attn_temperature_tuning"] = True
        params["floor_scale"] = config.query_temperature.floor_scale
        params["attn_scale"] = config.query_temperature.attn_scale
    if isinstance(config.vision, Llama4VisionConfig):
        params["vision_args"] = _vision_args(config.vision)
    return params


def _vision_args(vision: Llama4VisionConfig) -> dict[str, Any]:
    return {
        "image_size": {"height": vision.tile_size, "width": vision.tile_size},
        "patch_size": {"height": vision.patch_size, "width": vision.patch_size},
        "dim": vision.dim,
        "n_layers": vision.n_layers,
        "n_heads": vision.n_heads,
        "mlp_ratio": vision.ffn_dim / vision.dim,
        "output_dim": vision.adapter_dim,
        "pixel_shuffle_ratio": vision.pixel_shuffle,
    }


def meta_llama4_widths(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """The numbers by which Meta's code comes to the widths of dense layers and experts."""
    exact = config.ffn_dim / int(8 * config.dim / 3)
    for multiplier in (1.2, None, 1.3, 1.5, exact):
        for multiple in (2048, 4096, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1):
            rule: dict[str, Any] = {"multiple_of": multiple} | (
                {"ffn_dim_multiplier": multiplier} if multiplier else {}
            )
            for experts in _expert_rules(config, multiplier or 1.0):
                if _widths({**params, **rule, **experts}, config) == _widths_of(config):
                    return rule | experts
    raise Unsupported(
        f"params.json cannot state feed-forward widths of {_widths_of(config)} with dim {config.dim}; "
        "convert to hf"
    )


def _expert_rules(config: ModelConfig, multiplier: float) -> list[dict[str, Any]]:
    experts = config.experts
    if experts is None:
        return [{}]
    moe = {
        "num_experts": experts.n_experts,
        "capacity_factor": 1.0,
        "top_k": experts.n_active,
        "interleave_moe_layer_step": experts.every,
    }
    wide = 1.5 * experts.expert_ffn_dim / multiplier / config.dim
    exact = {"ffn_exp": wide, "moe_args": {**moe, "auto_scale_F": False}}
    return [{"ffn_exp": 4.0, "moe_args": {**moe, "auto_scale_F": True}}, exact]


def _widths(params: dict[str, Any], config: ModelConfig) -> tuple[int, ...]:
    return _widths_of(from_meta(params, config.vocab_size))


def _widths_of(config: ModelConfig) -> tuple[int, ...]:
    experts = config.experts
    return (config.ffn_dim, *((experts.expert_ffn_dim, experts.shared_ffn_dim) if experts else ()))
