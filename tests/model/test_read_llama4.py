"""Llama 4 as config.json, params.json and GGUF describe it, against transformers' classes and Meta's code."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core import BadFile, Unsupported
from puna.model.catalog import find
from puna.model.config import (
    ExpertsConfig,
    Llama4VisionConfig,
    ModelConfig,
    QueryTemperature,
    RopeScaling,
    from_gguf,
    from_hf,
    from_meta,
)
from puna.model.rope import rope_table

# the parts of the published config.json files that transformers' defaults do not have
VISION = {"hidden_size": 1408, "image_size": 336, "vision_output_dim": 4096}
SCOUT_ROPE = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
              "original_max_position_embeddings": 8192}  # fmt: skip


def theirs(**text: Any) -> dict[str, Any]:
    """A config.json that transformers wrote."""
    from transformers import Llama4Config

    written: dict[str, Any] = json.loads(
        Llama4Config(text_config=text, vision_config=VISION).to_json_string()
    )
    return written


def test_scout_as_transformers_writes_it() -> None:
    cfg = from_hf(theirs(max_position_embeddings=10485760, rope_parameters=SCOUT_ROPE | {"rope_theta": 5e5}))
    assert cfg == find("llama-4-scout-instruct").config


def test_maverick_as_transformers_writes_it() -> None:
    text = {"num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": False}
    assert (
        from_hf(theirs(max_position_embeddings=1048576, **text)) == find("llama-4-maverick-instruct").config
    )


def test_layers_are_those_of_transformers() -> None:
    from transformers import Llama4TextConfig

    text = Llama4TextConfig(num_hidden_layers=11, interleave_moe_layer_step=3, no_rope_layer_interval=5)
    cfg = from_hf(json.loads(text.to_json_string()))
    assert [i for i in range(11) if cfg.has_experts(i)] == text.moe_layers
    assert [int(cfg.has_rope(i)) for i in range(11)] == text.no_rope_layers
    chunked = [cfg.chunk(i) == 8192 for i in range(11)]
    assert chunked == [kind == "chunked_attention" for kind in text.layer_types]
    assert cfg.vision is None


def test_the_text_part_alone_is_the_text_of_the_whole() -> None:
    whole = theirs()
    assert from_hf(whole["text_config"]) == replace(from_hf(whole), vision=None)


def test_older_spellings() -> None:
    text = {"model_type": "llama4_text", "attn_temperature_tuning": 4, "no_rope_layers": []}
    cfg = from_hf(text)
    assert cfg.query_temperature == QueryTemperature(8192.0, 0.1)
    assert cfg.no_rope_every == 4
    assert from_hf(text | {"attn_temperature_tuning": 0}).query_temperature is None


def test_a_dense_llama4_as_the_conversion_of_llama_guard_4_writes_it() -> None:
    dense = {"moe_layers": [], "interleave_moe_layer_step": 0, "num_local_experts": 0,
             "no_rope_layer_interval": 80, "attention_chunk_size": None,
             "intermediate_size_mlp": 8192}  # fmt: skip
    cfg = from_hf(theirs(**dense))
    assert cfg.experts is None
    assert cfg.no_rope_every is None
    assert cfg.query_temperature is None
    assert [cfg.chunk(i) for i in (0, 3)] == [None, None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"no_rope_layers": [1, 0, 0, 1]}, "irregular distances"),
        ({"no_rope_layers": [1, 1]}, "for each of 4 layers"),
        ({"moe_layers": [0, 3]}, "irregular distances"),
        ({"moe_layers": [4]}, "below 4"),
        ({"moe_layers": "all"}, "list of whole numbers"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ({"attention_bias": True}, "bias"),
        ({"num_experts_per_tok": 17}, "n_active must be from 1 to the number of experts, 16"),
        ({"interleave_moe_layer_step": 0}, "interleave_moe_layer_step"),
        ({"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers"),
        ({"attention_chunk_size": -1}, "attention_chunk"),
        ({"attn_temperature_tuning": "yes"}, "true or false"),
    ],
)
def test_hf_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFile, match=said):
        from_hf({"model_type": "llama4_text", "num_hidden_layers": 4} | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_output_dim": 7680}, "vision_output_dim must be equal to projector_output_dim, 4096"),
        ({"intermediate_size": 5631}, "width after pixel shuffle, 5632"),
        ({"image_size": [336, 224]}, "two equal ones"),
        ({"pixel_shuffle_ratio": 0.3}, "pixel_shuffle"),
        ({"patch_size": 13}, "divisor of the tile's 336 pixels"),
        ({"num_channels": 4}, "RGB"),
    ],
)
def test_hf_vision_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFile, match=said):
        from_hf({"model_type": "llama4", "text_config": {}, "vision_config": VISION | changes})


hostile = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=2),
    st.lists(st.integers(-1, 50), max_size=50),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip
TEXT_KEYS = ("num_hidden_layers", "moe_layers", "no_rope_layers", "no_rope_layer_interval", "layer_types",
             "attention_chunk_size", "interleave_moe_layer_step", "num_local_experts", "num_experts_per_tok",
             "attn_temperature_tuning", "floor_scale", "head_dim", "rope_scaling", "use_qk_norm")  # fmt: skip
VISION_KEYS = ("image_size", "patch_size", "hidden_size", "num_attention_heads", "pixel_shuffle_ratio",
               "intermediate_size", "num_hidden_layers", "rope_parameters", "norm_eps")  # fmt: skip


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(TEXT_KEYS), hostile, max_size=3),
    st.dictionaries(st.sampled_from(VISION_KEYS), hostile, max_size=3),
)
def test_hostile_configs_are_only_ever_refused(text: dict[str, Any], vision: dict[str, Any]) -> None:
    with suppress(BadFile):
        cfg = from_hf({"model_type": "llama4", "text_config": text, "vision_config": VISION | vision})
        rope_table(cfg)


# llama-models' ModelArgs; the values give the widths of the published files by Meta's formulas
SCOUT_META: dict[str, Any] = {
    "dim": 5120, "n_layers": 48, "n_heads": 40, "n_kv_heads": 8, "vocab_size": 202048, "ffn_exp": 4.0,
    "ffn_dim_multiplier": 1.2, "multiple_of": 2048, "norm_eps": 1e-5, "rope_theta": 500000.0,
    "use_scaled_rope": True, "nope_layer_interval": 4, "attention_chunk_size": 8192, "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "moe_args": {"num_experts": 16, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1},
    "vision_args": {"image_size": {"height": 336, "width": 336}, "patch_size": {"height": 14, "width": 14},
                    "dim": 1408, "n_layers": 34, "n_heads": 16, "mlp_ratio": 4.0, "output_dim": 4096,
                    "pixel_shuffle_ratio": 0.5},
}  # fmt: skip


def test_meta_scout() -> None:
    assert from_meta(SCOUT_META, 202048) == find("llama-4-scout-instruct").config


def test_meta_maverick() -> None:
    moe = SCOUT_META["moe_args"] | {"num_experts": 128, "interleave_moe_layer_step": 2}
    params = SCOUT_META | {"moe_args": moe, "use_scaled_rope": False, "use_qk_norm": False}
    assert from_meta(params, 202048) == find("llama-4-maverick-instruct").config
    assert from_meta(params, 202048, context_length=262144) == find("llama-4-maverick").config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization_args": {"scheme": None, "spinquant": True}}, "'quantization_args'"),
        ({"nope_interval": 4}, "did you mean 'nope_layer_interval'"),
        ({"moe_args": {"num_experts": 16, "topk": 1}}, "did you mean 'top_k'"),
        ({"moe_args": {}}, "lacks 'num_experts'"),
        ({"ffn_exp": None}, "lacks 'ffn_exp'"),
        ({"vision_args": SCOUT_META["vision_args"] | {"image_size": {"height": 336, "width": 14}}}, "square"),
        ({"vocab_size": 5}, "vocabulary of 5"),
    ],
)
def test_meta_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFile, match=said):
        from_meta(SCOUT_META | changes, 202048)


huge = st.one_of(hostile, st.just(10**400), st.just(1e308), st.just(-(10**400)))


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(SCOUT_META)), huge, max_size=3),
    st.dictionaries(st.sampled_from(sorted(SCOUT_META["moe_args"])), huge, max_size=2),
    st.dictionaries(st.sampled_from(sorted(SCOUT_META["vision_args"])), huge, max_size=2),
)
def test_hostile_params_are_only_ever_refused(
    changes: dict[str, Any], moe: dict[str, Any], vision: dict[str, Any]
) -> None:
    sections = {"moe_args": SCOUT_META["moe_args"] | moe, "vision_args": SCOUT_META["vision_args"] | vision}
    with suppress(BadFile):
        rope_table(from_meta(SCOUT_META | sections | changes, 202048))


SHAPES = {"token_embd.weight": (96, 64), "blk.3.attn_norm.weight": (64,), "output.weight": (96, 64)}
GGUF = {
    "general.architecture": "llama4", "llama4.block_count": 4, "llama4.embedding_length": 64,
    "llama4.feed_forward_length": 256, "llama4.expert_feed_forward_length": 128,
    "llama4.interleave_moe_layer_step": 2, "llama4.expert_count": 16, "llama4.expert_used_count": 1,
    "llama4.attention.head_count": 4, "llama4.attention.head_count_kv": 2, "llama4.context_length": 1024,
    "llama4.attention.layer_norm_rms_epsilon": 1e-5, "llama4.rope.freq_base": 5e5,
    "llama4.rope.dimension_count": 16, "llama4.vocab_size": 96,
}  # fmt: skip


def test_gguf() -> None:
    assert from_gguf(GGUF, SHAPES) == ModelConfig(
        64, 4, 4, 2, 16, 256, 96, 1e-5, 5e5, 1024, tied=False, experts=ExpertsConfig(16, 1, 128, 128, 2),
        attention_chunk=8192, no_rope_every=4, qk_norm=True, query_temperature=QueryTemperature(),
    )  # fmt: skip
    assert not from_gguf(GGUF | {"llama4.expert_count": 128}, SHAPES).qk_norm


def test_gguf_without_chunks_has_rope_everywhere() -> None:
    """llama.cpp, src/models: a window of 0 (MobileLLM) turns chunks and layers without rope off."""
    cfg = from_gguf(GGUF | {"llama4.expert_count": 0, "llama4.attention.sliding_window": 0}, SHAPES)
    assert (cfg.experts, cfg.attention_chunk, cfg.no_rope_every) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama4.attention.sliding_window": 512}, "512"),
        ({"llama4.expert_gating_func": 1}, "sigmoid"),
        ({"llama4.expert_used_count": None}, "lacks 'llama4.expert_used_count'"),
        ({"llama4.attention.causal": False}, "bidirectional"),
    ],
)
def test_gguf_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises((BadFile, Unsupported), match=said):
        from_gguf(GGUF | changes, SHAPES)


def test_scouts_rope_has_no_band_to_blend() -> None:
    """Meta's apply_scaling asserts that no frequency falls between equal limits: each is kept or divided."""
    scout = find("llama-4-scout").config
    assert scout.rope_scaling == RopeScaling("llama3", factor=16.0, high_freq_factor=1.0)
    plain = rope_table(find("llama-4-maverick").config).frequencies
    ratios = plain / rope_table(scout).frequencies
    assert set(ratios.round(9)) == {1.0, 16.0}
    assert isinstance(scout.vision, Llama4VisionConfig)
    assert (scout.vision.tokens_per_tile, scout.vision.shuffled_dim) == (144, 5632)
