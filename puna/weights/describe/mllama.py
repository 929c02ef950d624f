"""Llama 3.2 Vision as config.json, params.json and GGUF metadata state it.

The readers are in model/read_mllama.py. What they cannot say is refused.
"""

from __future__ import annotations

from typing import Any

from puna.core import Unsupported
from puna.model.config import ModelConfig
from puna.model.read_mllama import N_IMAGE_EMBEDDINGS
from puna.model.vision_config import Llama32VisionConfig
from puna.weights.files.values import Value, ValueType

_PADDING = 128004  # of the released vocabulary


def _crossed(config: ModelConfig) -> list[int]:
    """Cross-attention layers numbered among the others."""
    return [before + i for i, before in enumerate(config.cross_attention)]


def _check_rows(config: ModelConfig) -> None:
    if config.n_image_embeddings != N_IMAGE_EMBEDDINGS:
        raise Unsupported(
            f"a Llama 3.2 Vision has {N_IMAGE_EMBEDDINGS} embeddings behind its vocabulary, this model has "
            f"{config.n_image_embeddings}; keep the model in its format"
        )


def hf_mllama_config(config: ModelConfig, common: dict[str, Any]) -> dict[str, Any]:
    """config.json of MllamaForConditionalGeneration, or of MllamaForCausalLM for the text part alone."""
    _check_rows(config)
    if config.head_dim * config.n_heads != config.dim:
        raise Unsupported(
            f"config.json of an mllama has no width of heads of its own: {config.n_heads} heads of "
            f"{config.head_dim} are not {config.dim}; keep the model in its format"
        )
    left_out = ("architectures", "head_dim", "attention_bias", "mlp_bias")
    text = {k: v for k, v in common.items() if k not in left_out}
    text |= {
        "model_type": "mllama_text_model",
        "num_hidden_layers": config.n_layers + len(config.cross_attention),
        "cross_attention_layers": _crossed(config),
        # transformers' default is the id of the release, which it looks for in a smaller table too
        "pad_token_id": _PADDING if config.vocab_size > _PADDING else None,
    }
    # transformers looks for the rotary base among the settings of the scaling alone
    scaling = text.get("rope_scaling") or {"rope_type": "default"}
    text["rope_parameters"] = {**scaling, "rope_theta": text["rope_theta"]}
    if config.vision is None:
        return {"architectures": ["MllamaForCausalLM"], **text}
    assert isinstance(config.vision, Llama32VisionConfig)
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "torch_dtype": text["torch_dtype"],
        "image_token_index": config.vocab_size,
        "text_config": text,
        "vision_config": _vision(config.vision),
    }


def _vision(vision: Llama32VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "mllama_vision_model",
        "attention_heads": vision.n_heads,
        "hidden_act": "gelu",
        "hidden_size": vision.dim,
        "image_size": vision.tile_size,
        "intermediate_layers_indices": list(vision.intermediate_layers),
        "intermediate_size": vision.ffn_dim,
        "max_num_tiles": vision.max_tiles,
        "norm_eps": vision.norm_eps,
        "num_channels": 3,
        "num_global_layers": vision.n_global_layers,
        "num_hidden_layers": vision.n_layers,
        "patch_size": vision.patch_size,
        "supported_aspect_ratios": [list(grid) for grid in vision.aspect_ratios],
        "vision_output_dim": vision.output_dim,
    }


def meta_mllama_params(config: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """params.json of Llama 3.2 Vision: that of its text decoder, and three numbers of images."""
    _check_rows(config)
    if config.vision is None:
        raise Unsupported(
            "Meta's files of Llama 3.2 Vision hold its image encoder, and this checkpoint has none; convert "
            "to hf or gguf, or give its vision file with --mmproj"
        )
    assert isinstance(config.vision, Llama32VisionConfig)
    return {
        **params,
        "vision_chunk_size": config.vision.tile_size,
        "vision_max_num_chunks": config.vision.max_tiles,
        "vision_num_cross_attention_layers": len(config.cross_attention),
    }


def mllama_metadata(config: ModelConfig, entries: dict[str, Value]) -> dict[str, Value]:
    """Metadata of the text part in Ollama's layout, from that of a dense Llama."""
    _check_rows(config)
    renamed = {key.replace("llama.", "mllama.", 1): value for key, value in entries.items()}
    return renamed | {
        "general.architecture": Value.of(ValueType.STRING, "mllama"),
        "mllama.block_count": Value.of(ValueType.UINT32, config.n_layers + len(config.cross_attention)),
        "mllama.attention.cross_attention_layers": Value.array(ValueType.UINT32, _crossed(config)),
    }
