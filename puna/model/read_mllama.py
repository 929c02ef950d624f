"""What descriptions of Llama 3.2 Vision say beyond a dense Llama: config.json, params.json, GGUF metadata.

Transformers and GGUF number cross-attention layers among the others; Meta, and so we, keep them apart.
"""

from __future__ import annotations

from typing import Any

from puna.model.record import Record, require
from puna.model.scaling import hf_scaling
from puna.model.vision_config import Llama32VisionConfig

N_IMAGE_EMBEDDINGS = 8  # rows behind the vocabulary; the first is the image token


def hf_mllama(record: Record) -> dict[str, Any]:
    """config.json of model_type `mllama` or `mllama_text_model`; defaults are transformers' own."""
    whole = record.text("model_type") == "mllama"
    text = record.section("text_config") if whole else record
    text.refuse_unless("hidden_act", "silu", "another activation")
    dim, n_heads = text.integer("hidden_size", 4096), text.integer("num_attention_heads", 32)
    context_length = text.integer("max_position_embeddings", 131072)
    rope = text.section("rope_scaling" if text.fields.get("rope_scaling") else "rope_parameters")
    default = (3, 8, 13, 18, 23, 28, 33, 38)
    crossed = text.integers("cross_attention_layers") if text.has("cross_attention_layers") else default
    n_all = text.integer("num_hidden_layers", 40)
    return {
        "dim": dim,
        "n_layers": n_all - len(crossed),
        "n_heads": n_heads,
        "n_kv_heads": text.integer("num_key_value_heads", 8),
        "head_dim": dim // max(n_heads, 1),
        "ffn_dim": text.integer("intermediate_size", 14336),
        "vocab_size": text.integer("vocab_size", 128256),
        "norm_eps": text.number("rms_norm_eps", 1e-5),
        "rope_theta": rope.number("rope_theta", text.number("rope_theta", 500000.0)),
        "context_length": context_length,
        "tied": text.flag("tie_word_embeddings", False),
        "rope_scaling": hf_scaling(rope, text, context_length),
        "cross_attention": _apart(crossed, n_all),
        "n_image_embeddings": N_IMAGE_EMBEDDINGS,
        "vision": _hf_vision(record.section("vision_config")) if whole else None,
    }


def _apart(crossed: tuple[int, ...], n_all: int) -> tuple[int, ...]:
    """From numbers among all layers to the self-attention layers that they come before."""
    rising = tuple(sorted(set(crossed))) == crossed
    good = rising and all(0 <= i < n_all for i in crossed)
    require(good, "cross_attention_layers", f"rising numbers of layers below {n_all}", list(crossed))
    return tuple(number - i for i, number in enumerate(crossed))


def _hf_vision(vision: Record) -> Llama32VisionConfig:
    vision.refuse_unless("hidden_act", "gelu", "another activation of the image encoder")
    vision.refuse_unless("num_channels", 3, "images that are not RGB")
    key = "intermediate_layers_indices"
    config = Llama32VisionConfig(
        tile_size=vision.side("image_size", 448),
        dim=vision.integer("hidden_size", 1280),
        n_layers=vision.integer("num_hidden_layers", 32),
        n_global_layers=vision.integer("num_global_layers", 8),
        n_heads=vision.integer("attention_heads", vision.integer("num_attention_heads", 16)),
        ffn_dim=vision.integer("intermediate_size", 5120),
        patch_size=vision.side("patch_size", 14),
        max_tiles=vision.integer("max_num_tiles", 4),
        intermediate_layers=vision.integers(key) if vision.has(key) else (3, 7, 15, 23, 30),
        norm_eps=vision.number("norm_eps", 1e-5),
    )
    found = vision.integer("vision_output_dim", 7680)
    require(found == config.output_dim, "vision_output_dim", str(config.output_dim), found)
    if vision.has("supported_aspect_ratios"):
        grids = vision.fields["supported_aspect_ratios"]
        expected = [list(grid) for grid in config.aspect_ratios]
        require(grids == expected, "supported_aspect_ratios", str(expected), grids)
    return config


META_KEYS = ("vision_chunk_size", "vision_max_num_chunks", "vision_num_cross_attention_layers")


def is_meta_mllama(record: Record) -> bool:
    return record.integer("vision_num_cross_attention_layers", -1) > 0


def meta_mllama(record: Record, n_layers: int) -> dict[str, Any]:
    """The vision keys of params.json (llama-models, llama3/multimodal/model.py)."""
    n_cross = record.integer("vision_num_cross_attention_layers")
    good = 0 < n_cross <= n_layers
    require(good, "vision_num_cross_attention_layers", f"from 1 to {n_layers}", n_cross)
    step = -(-n_layers // n_cross)
    last_first = range(n_layers - 1, -1, -step)[:n_cross]
    require(len(last_first) == n_cross, "vision_num_cross_attention_layers", "evenly spread", n_cross)
    return {
        "cross_attention": tuple(last_first)[::-1],
        "n_image_embeddings": N_IMAGE_EMBEDDINGS,
        "vision": Llama32VisionConfig(
            tile_size=record.integer("vision_chunk_size"),
            max_tiles=record.integer("vision_max_num_chunks", 4),
        ),
    }


def gguf_mllama(record: Record) -> dict[str, Any]:
    """Architecture `mllama` as Ollama's converter writes it (convert/convert_mllama.go).

    Its files do not say how the rope is scaled; the runner assumed Llama 3.1's, as the factor tensor has it.
    """
    n_all = record.integer("mllama.block_count")
    crossed = record.integers("mllama.attention.cross_attention_layers")
    fields: dict[str, Any] = {
        "n_layers": n_all - len(crossed),
        "cross_attention": _apart(crossed, n_all),
        "n_image_embeddings": N_IMAGE_EMBEDDINGS,
    }
    if record.has("mllama.vision.block_count"):
        record.refuse_unless("mllama.vision.num_channels", 3, "images that are not RGB")
        fields["vision"] = Llama32VisionConfig(
            tile_size=record.integer("mllama.vision.image_size"),
            dim=record.integer("mllama.vision.embedding_length"),
            n_layers=record.integer("mllama.vision.block_count"),
            n_global_layers=record.integer("mllama.vision.global.block_count"),
            n_heads=record.integer("mllama.vision.attention.head_count"),
            ffn_dim=record.integer("mllama.vision.feed_forward_length"),
            patch_size=record.integer("mllama.vision.patch_size"),
            max_tiles=record.integer("mllama.vision.max_num_tiles"),
            intermediate_layers=record.integers("mllama.vision.intermediate_layers_indices"),
            norm_eps=record.number("mllama.vision.attention.layer_norm_epsilon", 1e-5),
        )
    return fields
