"""Llama 3.2 Vision as config.json, params.json and GGUF describe it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from puna.core import BadFile
from puna.model.catalog import find
from puna.model.config import Llama32VisionConfig, from_gguf, from_hf, from_meta

ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 5e5}  # fmt: skip


def theirs(image_size: int = 560, **text: Any) -> dict[str, Any]:
    """A config.json that transformers wrote."""
    from transformers import MllamaConfig

    config = MllamaConfig(
        text_config={"rope_parameters": ROPE} | text, vision_config={"image_size": image_size}
    )
    written: dict[str, Any] = json.loads(config.to_json_string())
    return written


def test_11b_as_transformers_writes_it() -> None:
    assert from_hf(theirs()) == find("llama-3.2-11b-vision-instruct").config
    assert from_hf(theirs(448)) == find("llama-3.2-11b-vision").config


def test_90b_as_transformers_writes_it() -> None:
    text = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
            "num_hidden_layers": 100, "cross_attention_layers": list(range(3, 100, 5))}  # fmt: skip
    assert from_hf(theirs(**text)) == find("llama-3.2-90b-vision").config


def test_the_text_part_alone() -> None:
    cfg = from_hf(theirs()["text_config"])
    assert cfg.vision is None
    assert cfg.cross_attention == (3, 7, 11, 15, 19, 23, 27, 31)
    assert cfg.n_layers == 32


def test_grids_are_those_of_transformers() -> None:
    from transformers import MllamaVisionConfig

    grids = MllamaVisionConfig().supported_aspect_ratios
    assert [list(grid) for grid in Llama32VisionConfig(560).aspect_ratios] == grids


META = {
    "dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "vocab_size": 128256,
    "ffn_dim_multiplier": 1.3, "multiple_of": 4096, "norm_eps": 1e-05, "rope_theta": 500000.0,
    "use_scaled_rope": True, "vision_chunk_size": 560, "vision_max_num_chunks": 4,
    "vision_num_cross_attention_layers": 20,
}  # fmt: skip


def test_meta() -> None:
    """The parameters of llama-models' sku_list; its _init_fusion_schedule spreads the layers."""
    assert from_meta(META, 128256) == find("llama-3.2-90b-vision-instruct").config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_num_cross_attention_layers": 81}, "from 1 to 80"),
        ({"vision_num_cross_attention_layers": None}, "'vision_chunk_size'"),
        ({"vision_chunk_size": None}, "lacks 'vision_chunk_size'"),
        ({"vision_chunk_size": 561}, "divisor of the tile's 561 pixels"),
    ],
)
def test_meta_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFile, match=said):
        from_meta(META | changes, 128256)


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("text_config", {"cross_attention_layers": [3, 3]}, "rising numbers"),
        ("text_config", {"cross_attention_layers": [40]}, "below 40"),
        ("text_config", {"cross_attention_layers": []}, "cross_attention must be given"),
        ("vision_config", {"vision_output_dim": 1280}, "vision_output_dim must be 7680"),
        ("vision_config", {"supported_aspect_ratios": [[1, 1]]}, "supported_aspect_ratios"),
        ("vision_config", {"intermediate_layers_indices": [40]}, "intermediate_layers"),
        ("vision_config", {"attention_heads": 7}, "whole heads"),
    ],
)
def test_hf_refusals(section: str, changes: dict[str, Any], said: str) -> None:
    config = {"model_type": "mllama", "text_config": {}, "vision_config": {}}
    with pytest.raises(BadFile, match=said):
        from_hf(config | {section: changes})


def test_gguf() -> None:
    """The keys that Ollama's converter writes."""
    text = {"block_count": 5, "embedding_length": 64, "feed_forward_length": 96, "context_length": 128,
            "attention.head_count": 4, "attention.head_count_kv": 2, "rope.freq_base": 5e5, "vocab_size": 96,
            "attention.layer_norm_rms_epsilon": 1e-5, "attention.cross_attention_layers": [1, 3]}  # fmt: skip
    vision = {"block_count": 3, "global.block_count": 1, "intermediate_layers_indices": [0, 2],
              "embedding_length": 32, "feed_forward_length": 64, "attention.head_count": 2, "image_size": 28,
              "patch_size": 14, "max_num_tiles": 4, "num_channels": 3}  # fmt: skip
    metadata = {f"mllama.{k}": v for k, v in text.items()} | {
        f"mllama.vision.{k}": v for k, v in vision.items()
    }
    shapes = {"token_embd.weight": (104, 64), "blk.4.attn_norm.weight": (64,), "output.weight": (96, 64)}
    cfg = from_gguf({"general.architecture": "mllama"} | metadata, shapes)
    assert (cfg.n_layers, cfg.cross_attention) == (3, (1, 2))
    assert (cfg.vocab_size, cfg.n_image_embeddings) == (96, 8)
    assert cfg.vision == Llama32VisionConfig(28, 32, 3, 1, 2, 64, 14, 4, (0, 2))
