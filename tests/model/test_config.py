"""Reading what a checkpoint says of itself, and refusing what Puna does not compute."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from golden.tiny import TINY, gguf_metadata, gguf_tensors, in_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core import BadFile, Unsupported
from puna.model.config import ModelConfig, RopeScaling, from_gguf, from_hf, from_meta
from puna.model.rope import rope_table

GGUF_TINY = [tiny for tiny in TINY.values() if in_gguf(tiny)]
LLAMA2 = TINY["llama2"]


def read_gguf(tiny, **changes: Any) -> ModelConfig:
    tensors = gguf_tensors(tiny)
    metadata: dict[str, Any] = {**gguf_metadata(tiny), **changes}
    metadata = {k: v for k, v in metadata.items() if v is not None}
    return from_gguf(metadata, {n: a.shape for n, a in tensors.items()}, lambda name: tensors[name])


def llama(key: str, value: Any) -> dict[str, Any]:
    return {f"llama.{key}": value}


def hf(**changes: Any) -> dict[str, Any]:
    return LLAMA2.hf | changes


@pytest.mark.parametrize("tiny", GGUF_TINY, ids=lambda t: t.name)
def test_gguf_says_the_same_as_hugging_face(tiny) -> None:
    ours, theirs = tiny.config, read_gguf(tiny)
    assert dataclasses.replace(theirs, rope_scaling=None) == dataclasses.replace(ours, rope_scaling=None)
    for context in (tiny.greedy_context or 32, 512):
        a, b = rope_table(ours, context), rope_table(theirs, context)
        np.testing.assert_allclose(a.frequencies, b.frequencies, rtol=1e-7)
        assert a.attention_factor == pytest.approx(b.attention_factor)


def test_gguf_defaults() -> None:
    dropped = dict.fromkeys(
        ("llama.attention.head_count_kv", "llama.attention.key_length", "llama.attention.value_length",
         "llama.rope.dimension_count", "llama.rope.freq_base", "llama.vocab_size")
    )  # fmt: skip
    cfg = read_gguf(TINY["llama1"], **dropped)
    assert cfg == TINY["llama1"].config


def test_gguf_per_layer_values_that_agree() -> None:
    both = {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": np.array([352, 352])}
    assert read_gguf(LLAMA2, **both) == LLAMA2.config


@pytest.mark.parametrize("key", ["block_count", "context_length", "embedding_length", "feed_forward_length",
                                 "attention.head_count", "attention.layer_norm_rms_epsilon"])  # fmt: skip
def test_gguf_missing_key_is_named(key: str) -> None:
    with pytest.raises(BadFile, match=f"lacks 'llama\\.{key}'"):
        read_gguf(LLAMA2, **llama(key, None))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.architecture": "gemma3"}, "'gemma3'"),
        (llama("expert_count", 8), "mixture of experts"),
        (llama("attention.causal", False), "bidirectional"),
        (llama("rope.scaling.type", "su"), "rope scaling 'su' is unknown"),
        (llama("rope.scaling.yarn_ext_factor", 0.5), "yarn_ext_factor"),
        (llama("rope.scaling.attn_factor", 1.5), "attn_factor"),
        (llama("rope.dimension_count", 16), "rope.dimension_count is 16"),
        (llama("attention.value_length", 16), "value_length is 16"),
        (llama("attention.head_count_kv", [2, 1]), "per layer"),
        (llama("attention.sliding_window", np.array([1, 2])), "sliding-window"),
    ],
)
def test_gguf_of_another_kind_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        read_gguf(LLAMA2, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (llama("block_count", 4_000_000_000), "'blk.3999999999.attn_norm.weight'"),
        (llama("block_count", 0), "block_count must be 1 or more"),
        (llama("block_count", "2"), "must be a whole number, found '2'"),
        (llama("embedding_length", True), "must be a whole number"),
        (llama("attention.head_count_kv", 3), "whole number of query heads"),
        (llama("attention.head_count", 0), "n_heads must be"),
        (llama("attention.head_count", np.array([], np.int32)), "one for each layer"),
        (llama("attention.layer_norm_rms_epsilon", 0.0), "norm_eps"),
        (llama("attention.layer_norm_rms_epsilon", float("nan")), "finite number"),
        (llama("rope.freq_base", -1.0), "rope_theta"),
        (llama("vocab_size", 97), "vocab_size is 97.* 96 rows"),
        (llama("context_length", 2**40), "context_length must be"),
        (llama("rope.scaling.type", "longrope"), "rope_factors_short.weight"),
        (llama("rope.scaling.factor", -2.0), "rope scaling factor must be above 0"),
        ({"general.architecture": None}, "lacks 'general.architecture'"),
    ],
)
def test_gguf_bad_values_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFile, match=said):
        read_gguf(LLAMA2, **changes)


def test_gguf_rope_factors_are_checked() -> None:
    tensors = gguf_tensors(TINY["llama31"])
    shapes = {n: a.shape for n, a in tensors.items()}
    metadata = gguf_metadata(TINY["llama31"])
    with pytest.raises(BadFile, match=r"rope_freqs.* must be shape"):
        from_gguf(metadata, shapes | {"rope_freqs.weight": (7,)}, lambda _: [1.0] * 7)
    with pytest.raises(BadFile, match="positive"):
        from_gguf(metadata, shapes, lambda _: [0.0] * 32)


hostile = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(("", "yarn")),
    st.lists(st.integers(0, 9)), st.just(np.array([[1.0]])),
)  # fmt: skip
KEYS = sorted({*gguf_metadata(TINY["yarn"]), "llama.expert_count", "llama.rope.scaling.attn_factor",
               "llama.rope.scaling.yarn_log_multiplier", "llama.rope.scaling.yarn_beta_fast"})  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), hostile, max_size=4), st.sampled_from(("none", "yarn")))
def test_gguf_hostile_metadata_is_only_ever_refused(changes: dict[str, Any], kind: str) -> None:
    with suppress(BadFile):
        rope_table(read_gguf(TINY["yarn"], **({"llama.rope.scaling.type": kind} | changes)))


def test_hf_spellings_agree() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    original = {"original_max_position_embeddings": 8192}
    new = {"rope_type": "llama3", "rope_theta": 5e5} | scaling | original
    spellings = [
        hf(rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | scaling | original),
        hf(rope_theta=5e5, rope_scaling={"type": "llama3"} | scaling | original),
        hf(rope_theta=None, rope_scaling=None, rope_parameters=new),
        hf(rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | scaling, **original),
    ]
    expected = RopeScaling("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    for spelling in spellings:
        cfg = from_hf(json.loads(json.dumps(spelling)))
        assert cfg.rope_scaling == expected
        assert cfg.rope_theta == 5e5


def test_hf_plain_rope_parameters() -> None:
    cfg = from_hf(hf(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 77.0}))
    assert cfg.rope_scaling is None
    assert cfg.rope_theta == 77.0


def test_hf_defaults() -> None:
    needed = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    cfg = from_hf({k: LLAMA2.hf[k] for k in (*needed, "num_attention_heads")})
    assert cfg == ModelConfig(128, 2, 4, 4, 32, 352, 96, 1e-6, 10000.0, 2048, tied=False)
    assert from_hf(hf(head_dim=None)).head_dim == 32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "qwen2"}, "'qwen2'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "'mrope' is unknown"),
        ({"rope_scaling": {"type": "linar", "factor": 2.0}}, "did you mean 'linear'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "offset": 1}}, "'offset'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "partly rotated"),
    ],
)
def test_hf_of_another_kind_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        from_hf(hf(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"rope_scaling": {"type": "linear"}}, "'rope_scaling' of config.json lacks 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'factor'.* found '2'"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "16 numbers"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"num_attention_heads": 0}, "n_heads"),
        ({"head_dim": 33}, "even"),
    ],
)
def test_hf_bad_values_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFile, match=said):
        from_hf(hf(**changes))


META = {  # name: (params.json, vocabulary, feed-forward width)
    "llama-7b": ({"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06,
                  "vocab_size": -1}, 32000, 11008),
    "llama-65b": ({"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05,
                   "vocab_size": -1}, 32000, 22016),
    "llama-2-70b": ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64,
                     "n_kv_heads": 8, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}, 32000, 28672),
    "llama-3.1-8b": ({"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256,
                      "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "norm_eps": 1e-05,
                      "rope_theta": 500000.0, "use_scaled_rope": True}, 128256, 14336),
    "llama-3.1-405b": ({"dim": 16384, "n_layers": 126, "n_heads": 128, "n_kv_heads": 8,
                        "vocab_size": 128256, "ffn_dim_multiplier": 1.2, "multiple_of": 4096,
                        "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True}, 128256, 53248),
    "llama-3.2-1b": ({"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256,
                      "ffn_dim_multiplier": 1.5, "multiple_of": 256, "norm_eps": 1e-05,
                      "rope_theta": 500000.0, "use_scaled_rope": True}, 128256, 8192),
    "llama-3.2-3b": ({"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "vocab_size": 128256,
                      "ffn_dim_multiplier": 1.0, "multiple_of": 256, "norm_eps": 1e-05,
                      "rope_theta": 500000.0, "use_scaled_rope": True}, 128256, 8192),
}  # fmt: skip


@pytest.mark.parametrize("name", META)
def test_meta(name: str) -> None:
    params, vocab_size, ffn_dim = META[name]
    cfg = from_meta(params, vocab_size)
    assert cfg.ffn_dim == ffn_dim
    assert cfg.vocab_size == vocab_size
    assert cfg.n_kv_heads == params.get("n_kv_heads", params["n_heads"])
    assert (cfg.rope_scaling is not None) == ("use_scaled_rope" in params)


def test_meta_context_scaling_and_tying_come_from_the_release() -> None:
    params, vocab_size, _ = META["llama-3.2-1b"]
    assert from_meta(params, vocab_size).context_length == 131072
    cfg = from_meta(params, vocab_size, context_length=8192, rope_factor=32.0, tied=True)
    assert cfg.rope_scaling == RopeScaling("llama3", factor=32.0)
    assert (cfg.context_length, cfg.tied) == (8192, True)
    assert from_meta(META["llama-7b"][0], 32000).context_length == 2048


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_chunk_size": 448}, "'vision_chunk_size'"),
        ({"quantization_args": {"scheme": "int4"}}, "'quantization_args'"),
        ({"n_head": 4}, "did you mean 'n_heads'"),
        ({"vocab_size": 32001}, "32001"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"dim": None}, "lacks 'dim'"),
    ],
)
def test_meta_refusals(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFile, match=said):
        from_meta(META["llama-7b"][0] | changes, 32000)
