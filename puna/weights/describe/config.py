"""A configuration as the three kinds of checkpoint state it: GGUF metadata, config.json, params.json.

What a description cannot say is refused. The readers are from_gguf, from_hf and from_meta of model/config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import Unsupported
from puna.model.config import ModelConfig, RopeScaling, from_meta
from puna.model.incoming import is_llama4
from puna.model.rope import rope_table
from puna.model.scaling import yarn_mscale
from puna.weights.describe.llama4 import hf_llama4_config, meta_llama4_params, meta_llama4_widths
from puna.weights.describe.mllama import hf_mllama_config, meta_mllama_params, mllama_metadata
from puna.weights.files.values import Value, ValueType

# Fields of a configuration that a dense text decoder leaves as they are.
_BEYOND_DENSE = (
    "experts", "attention_chunk", "no_rope_every", "qk_norm", "query_temperature", "cross_attention",
    "n_image_embeddings", "vision", "ffn_hadamard", "lora_rank",
)  # fmt: skip


def is_dense(config: ModelConfig) -> bool:
    return not any(getattr(config, name) for name in _BEYOND_DENSE)


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def hf_config(config: ModelConfig, kind: str) -> dict[str, Any]:
    """The config.json of transformers' classes, 4.51 or later; `kind` is that of the matrices.

    Special tokens are left to whoever knows the tokenizer. Raises Unsupported for rotary factors of a GGUF
    file that no rule of transformers makes.
    """
    described: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": _DTYPES[kind],
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": _shortest(config.norm_eps),
        "rope_theta": _shortest(config.rope_theta),
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
    if config.rope_scaling is not None:
        described["rope_scaling"] = _hf_scaling(config, config.rope_scaling)
    if config.cross_attention:
        return hf_mllama_config(config, described)
    return hf_llama4_config(config, described) if is_llama4(config) else described


def _shortest(value: float) -> float:
    """The shortest number with the same float32, where a GGUF file has rounded it to one: 1e-5 again."""
    return float(str(np.float32(value))) if float(np.float32(value)) == value else value


def _hf_scaling(config: ModelConfig, scaling: RopeScaling) -> dict[str, Any]:
    if scaling.kind == "factors":
        scaling = llama3_of_factors(config)
    described: dict[str, Any] = {"rope_type": scaling.kind, "factor": _shortest(scaling.factor)}
    if scaling.kind == "llama3":
        described["low_freq_factor"] = scaling.low_freq_factor
        described["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind in ("llama3", "yarn", "longrope"):
        described["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "yarn":
        described |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        described["truncate"] = scaling.truncate
        if not np.isclose(scaling.attention, yarn_mscale(scaling.factor), rtol=1e-6, atol=0):
            described["attention_factor"] = scaling.attention
    if scaling.kind == "longrope":
        described["short_factor"] = list(scaling.short_factors)
        described["long_factor"] = list(scaling.long_factors)
        described["attention_factor"] = scaling.attention
    return described


def llama3_of_factors(config: ModelConfig) -> RopeScaling:
    """The settings of Llama 3.1's rule that make the factors of a GGUF file; Unsupported where none do."""
    assert config.rope_scaling is not None
    factors = np.array(config.rope_scaling.factors)
    for original in (8192, *(1 << n for n in range(5, 21))):
        for high in (4.0, 1.0):
            tried = RopeScaling("llama3", float(factors.max()), 1.0, high, original)
            made = rope_factors(replace(config, rope_scaling=tried))
            if made is not None and np.allclose(made, factors, rtol=1e-5, atol=0):
                return replace(tried, factor=_shortest(tried.factor))
    raise Unsupported(
        "the file's rotary factors (rope_freqs.weight) follow no rule that config.json or params.json can "
        "state; keep the model in GGUF"
    )


# Widths of the releases (params.json), then whatever else gives the width: multiple_of, ffn_dim_multiplier.
_MULTIPLES = (256, 1024, 4096, 2048, 512, 128, 64, 32, 16, 8, 4, 2, 1)
_MULTIPLIERS = (None, 1.3, 1.2, 1.5)


def meta_params(config: ModelConfig) -> dict[str, Any]:
    """Meta's params.json. Raises Unsupported for what it cannot say.

    The length of the context is not part of it: where no release of the catalog has this shape, readers
    assume one.
    """
    params = _common_params(config)
    if is_llama4(config):
        params = meta_llama4_params(config, params)
        return params | meta_llama4_widths(config, params)
    params |= _ffn_rule(config, params)
    return meta_mllama_params(config, params) if config.cross_attention else params


def _common_params(config: ModelConfig) -> dict[str, Any]:
    """What all generations state; the widths of feed-forward layers are left out."""
    if config.head_dim * config.n_heads != config.dim:
        raise Unsupported(
            f"params.json has no width of heads of its own: {config.n_heads} heads of {config.head_dim} are "
            f"not dim {config.dim}; convert to hf or gguf"
        )
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "factors":
        scaling = llama3_of_factors(config)
    llama4 = is_llama4(config)
    if scaling is not None and not _in_params(scaling, llama4):
        raise Unsupported(f"params.json cannot state {scaling.kind!r} rope scaling; convert to hf or gguf")
    params: dict[str, Any] = {"dim": config.dim, "n_layers": config.n_layers, "n_heads": config.n_heads}
    if config.n_kv_heads != config.n_heads:
        params["n_kv_heads"] = config.n_kv_heads
    params |= {"vocab_size": config.vocab_size, "norm_eps": _shortest(config.norm_eps)}
    # Code for Llama 1 and 2 knows neither setting.
    if config.rope_theta != 10000.0:
        params["rope_theta"] = _shortest(config.rope_theta)
    if scaling is not None:
        params["use_scaled_rope"] = True
        if llama4:
            params["rope_scaling_factor"] = _shortest(scaling.factor)
            params["rope_high_freq_factor"] = scaling.high_freq_factor
    return params


def _in_params(scaling: RopeScaling, llama4: bool) -> bool:
    """Whether params.json can state a scaling; Meta's code for Llama 3 has the numbers in itself."""
    is_rule = scaling.kind == "llama3" and scaling.low_freq_factor == 1
    return is_rule and (llama4 or scaling.high_freq_factor == 4)


def _ffn_rule(config: ModelConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The two numbers by which Meta's code comes to the width of the feed-forward layers."""
    exact = config.ffn_dim / int(8 * config.dim / 3)
    for multiplier in (*_MULTIPLIERS, exact):
        for multiple in _MULTIPLES:
            rule = {"multiple_of": multiple} | ({"ffn_dim_multiplier": multiplier} if multiplier else {})
            if from_meta({**params, **rule}, config.vocab_size).ffn_dim == config.ffn_dim:
                return rule
    raise Unsupported(
        f"params.json cannot state a feed-forward width of {config.ffn_dim} with dim {config.dim}; convert "
        "to hf"
    )


def same_model(a: ModelConfig, b: ModelConfig) -> str | None:
    """The name of a setting by which two descriptions differ in what they compute, or None.

    Numbers may differ in their 24th bit: GGUF rounds them to float32. The context is not looked at.
    """
    exact = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "vocab_size", "tied")
    for name in (*exact, *(name for name in _BEYOND_DENSE if name not in ("vision", "query_temperature"))):
        if getattr(a, name) != getattr(b, name):
            return name
    for name in ("vision", "query_temperature"):
        if not _close(getattr(a, name), getattr(b, name)):
            return name
    for name in ("norm_eps", "rope_theta"):
        if np.float32(getattr(a, name)) != np.float32(getattr(b, name)):
            return name
    tables = rope_table(a), rope_table(b)
    pairs = [(t.frequencies, t.attention_factor) for t in tables]
    alike = all(np.allclose(x, y, rtol=1e-5, atol=0) for x, y in zip(*pairs, strict=True))
    return None if alike else "rope_scaling"


def _close(a: Any, b: Any) -> bool:
    """Whether two parts of a configuration are equal but for the rounding of their numbers to float32."""
    if type(a) is not type(b) or a is None:
        return a is b
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)]
    return all(np.float32(x) == np.float32(y) if isinstance(x, float) else x == y for x, y in pairs)


def _u32(value: int) -> Value:
    return Value.of(ValueType.UINT32, value)


def _f32(value: float) -> Value:
    return Value.of(ValueType.FLOAT32, value)


def text_metadata(config: ModelConfig) -> dict[str, Value]:
    """GGUF metadata of any Llama's text decoder, by which from_gguf reads it back."""
    if is_llama4(config):
        from puna.weights.describe.gguf_llama4 import llama4_metadata  # which builds on this file

        return dict(llama4_metadata(config))
    entries = gguf_metadata(config)
    return mllama_metadata(config, entries) if config.cross_attention else entries


def gguf_metadata(config: ModelConfig) -> dict[str, Value]:
    """What from_gguf of model/config.py reads back as `config`; Llama 3's scaling comes back as factors."""
    return {
        "general.architecture": Value.of(ValueType.STRING, "llama"),
        "general.quantization_version": _u32(2),
        "llama.vocab_size": _u32(config.vocab_size),
        "llama.context_length": _u32(config.context_length),
        "llama.embedding_length": _u32(config.dim),
        "llama.block_count": _u32(config.n_layers),
        "llama.feed_forward_length": _u32(config.ffn_dim),
        "llama.attention.head_count": _u32(config.n_heads),
        "llama.attention.head_count_kv": _u32(config.n_kv_heads),
        "llama.attention.key_length": _u32(config.head_dim),
        "llama.attention.value_length": _u32(config.head_dim),
        "llama.attention.layer_norm_rms_epsilon": _f32(config.norm_eps),
        "llama.rope.dimension_count": _u32(config.head_dim),
        "llama.rope.freq_base": _f32(config.rope_theta),
    } | _scaling_metadata(config.rope_scaling)


def _scaling_metadata(scaling: RopeScaling | None) -> dict[str, Value]:
    if scaling is None or scaling.kind in ("llama3", "factors"):
        return {}
    if scaling.kind not in ("linear", "yarn"):
        raise Unsupported(f"GGUF files of Llama cannot state {scaling.kind!r} rope scaling")
    entries = {
        "llama.rope.scaling.type": Value.of(ValueType.STRING, scaling.kind),
        "llama.rope.scaling.factor": _f32(scaling.factor),
    }
    if scaling.kind == "yarn":
        # The reader multiplies YaRN's own factor in again.
        entries["llama.rope.scaling.attn_factor"] = _f32(scaling.attention / yarn_mscale(scaling.factor))
        entries["llama.rope.scaling.original_context_length"] = _u32(scaling.original_context)
        entries["llama.rope.scaling.yarn_beta_fast"] = _f32(scaling.beta_fast)
        entries["llama.rope.scaling.yarn_beta_slow"] = _f32(scaling.beta_slow)
    return entries


def rope_factors(config: ModelConfig) -> NDArray[np.float32] | None:
    """Divisors of the frequencies [head_dim / 2], which GGUF keeps in rope_freqs.weight, if there are any."""
    scaling = config.rope_scaling
    if scaling is None or not (scaling.factors or scaling.kind == "llama3"):
        return None
    if scaling.kind != "llama3":
        return np.array(scaling.factors, np.float32)
    plain = rope_table(replace(config, rope_scaling=None)).frequencies
    return (plain / rope_table(config).frequencies).astype(np.float32)
