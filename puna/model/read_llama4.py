"""What descriptions of Llama 4 say beyond a dense Llama: config.json, params.json and GGUF metadata.

Each function gives arguments of ModelConfig. config.py calls them; nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from puna.core import Unsupported
from puna.model.parts import ExpertsConfig, QueryTemperature
from puna.model.record import Record, require, whole
from puna.model.scaling import RopeScaling, hf_scaling
from puna.model.vision_config import Llama4VisionConfig

_MAX_LAYERS = 1 << 16  # far above any model: a hostile number is not walked to its end


def hf_llama4(record: Record) -> dict[str, Any]:
    """config.json of model_type `llama4` or `llama4_text`; defaults are transformers' own."""
    whole = record.text("model_type") == "llama4"
    text = record.section("text_config") if whole else record
    fields = _hf_text(text)
    if whole:
        fields["tied"] = text.flag("tie_word_embeddings", record.flag("tie_word_embeddings", False))
        fields["vision"] = _hf_vision(record.section("vision_config"))
    return fields


def _hf_text(text: Record) -> dict[str, Any]:
    text.refuse_unless("attention_bias", False, "projections with bias")
    text.refuse_unless("hidden_act", "silu", "another activation")
    n_layers = text.integer("num_hidden_layers", 48)
    require(0 < n_layers <= _MAX_LAYERS, "num_hidden_layers", f"from 1 to {_MAX_LAYERS}", n_layers)
    n_heads, dim = text.integer("num_attention_heads", 40), text.integer("hidden_size", 5120)
    context_length = text.integer("max_position_embeddings", 131072)
    rope = text.section("rope_scaling" if text.fields.get("rope_scaling") else "rope_parameters")
    no_rope_every = _hf_no_rope_every(text, n_layers)
    return {
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": text.integer("num_key_value_heads", 8),
        "head_dim": text.integer("head_dim", 128),
        "ffn_dim": text.integer("intermediate_size_mlp", 16384),
        "vocab_size": text.integer("vocab_size", 202048),
        "norm_eps": text.number("rms_norm_eps", 1e-5),
        "rope_theta": rope.number("rope_theta", text.number("rope_theta", 500000.0)),
        "context_length": context_length,
        "tied": text.flag("tie_word_embeddings", False),
        "rope_scaling": hf_scaling(rope, text, context_length),
        "experts": _hf_experts(text, n_layers),
        "attention_chunk": _hf_chunk(text, n_layers, no_rope_every),
        "no_rope_every": no_rope_every,
        "qk_norm": text.flag("use_qk_norm", True),
        "query_temperature": _hf_temperature(text) if no_rope_every else None,
    }


def _hf_experts(text: Record, n_layers: int) -> ExpertsConfig | None:
    step = text.integer("interleave_moe_layer_step", 1)
    if text.has("moe_layers"):
        chosen = text.integers("moe_layers")
        inside = all(0 <= i < n_layers for i in chosen)
        require(inside, "moe_layers", f"numbers of layers below {n_layers}", list(chosen))
        every = _every([i in chosen for i in range(n_layers)], "moe_layers")
    else:
        require(step > 0, "interleave_moe_layer_step", "1 or more", step)
        every = step if step <= n_layers else None
    if every is None:
        return None
    ffn_dim = text.integer("intermediate_size", 8192)
    return ExpertsConfig(
        n_experts=text.integer("num_local_experts", 16),
        n_active=text.integer("num_experts_per_tok", 1),
        expert_ffn_dim=ffn_dim,
        shared_ffn_dim=ffn_dim,
        every=every,
    )


def _hf_no_rope_every(text: Record, n_layers: int) -> int | None:
    if text.fields.get("no_rope_layers"):  # 1 marks a layer *with* rope; empty is as good as absent
        marks = text.integers("no_rope_layers")[:n_layers]
        expected = f"a 0 or 1 for each of {n_layers} layers"
        require(len(marks) == n_layers and set(marks) <= {0, 1}, "no_rope_layers", expected, list(marks))
        return _every([mark == 0 for mark in marks], "no_rope_layers")
    every = text.integer("no_rope_layer_interval", 4)
    require(every > 0, "no_rope_layer_interval", "1 or more", every)
    return every if every <= n_layers else None


def _hf_chunk(text: Record, n_layers: int, no_rope_every: int | None) -> int | None:
    """The chunk of layers with rope. `attention_chunk_size` null means none, absent means 8192."""
    fields = text.fields
    chunk = text.integer("attention_chunk_size", 8192) if fields.get("attention_chunk_size", 1) else None
    if not text.has("layer_types"):
        return chunk
    types = fields["layer_types"]
    full = ["full_attention"] * n_layers
    mixed = [
        "full_attention" if no_rope_every and (i + 1) % no_rope_every == 0 else "chunked_attention"
        for i in range(n_layers)
    ]
    if types == full:
        return None
    if types != mixed or chunk is None:
        raise Unsupported(
            f"{text.what} sets 'layer_types' to a pattern that does not follow its layers without rope; "
            "Puna runs only chunked attention in all layers with rope, or in none"
        )
    return chunk


def _hf_temperature(text: Record) -> QueryTemperature | None:
    if not text.switch("attn_temperature_tuning", True):
        return None
    return QueryTemperature(text.number("floor_scale", 8192.0), text.number("attn_scale", 0.1))


def _hf_vision(vision: Record) -> Llama4VisionConfig:
    vision.refuse_unless("hidden_act", "gelu", "another activation of the image encoder")
    vision.refuse_unless("num_channels", 3, "images that are not RGB")
    vision.refuse_unless("multi_modal_projector_bias", False, "a projector with bias")
    adapter_dim = vision.integer("projector_output_dim", 4096)
    for key, default in (("projector_input_dim", 4096), ("vision_output_dim", 7680)):
        found = vision.integer(key, default)
        expected = f"equal to projector_output_dim, {adapter_dim}"
        require(found == adapter_dim, f"vision {key}", expected, found)
    rope = vision.section("rope_parameters")
    config = Llama4VisionConfig(
        tile_size=vision.side("image_size", 448),
        dim=vision.integer("hidden_size", 768),
        n_layers=vision.integer("num_hidden_layers", 34),
        n_heads=vision.integer("num_attention_heads", 16),
        ffn_dim=vision.integer("intermediate_size", 5632),
        patch_size=vision.side("patch_size", 14),
        pixel_shuffle=vision.number("pixel_shuffle_ratio", 0.5),
        adapter_dim=adapter_dim,
        rope_theta=rope.number("rope_theta", vision.number("rope_theta", 10000.0)),
        norm_eps=vision.number("norm_eps", 1e-5),
    )
    # transformers sizes the first layer of the adapter by the encoder's feed-forward
    good = config.shuffled_dim == config.ffn_dim
    expected = f"the width after pixel shuffle, {config.shuffled_dim}"
    require(good, "vision intermediate_size", expected, config.ffn_dim)
    return config


def _every(marks: Sequence[bool], key: str) -> int | None:
    """n where exactly layers n-1, 2n-1, ... are marked; None where none is."""
    if True not in marks:
        return None
    every = marks.index(True) + 1
    if any(mark != ((i + 1) % every == 0) for i, mark in enumerate(marks)):
        raise Unsupported(f"{key!r} marks layers at irregular distances, and Puna runs only every n-th layer")
    return every


META_KEYS = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "multiple_of", "ffn_dim_multiplier",
    "ffn_exp", "norm_eps", "attention_chunk_size", "rope_theta", "use_scaled_rope", "rope_scaling_factor",
    "rope_high_freq_factor", "nope_layer_interval", "use_qk_norm", "attn_temperature_tuning", "floor_scale",
    "attn_scale", "vision_args", "moe_args", "max_batch_size", "max_seq_len",
)  # fmt: skip
MARKS = ("moe_args", "vision_args", "nope_layer_interval", "attention_chunk_size", "ffn_exp", "use_qk_norm")


def is_meta_llama4(record: Record) -> bool:
    return any(record.has(key) for key in MARKS)


def meta_llama4(record: Record, vocab_size: int, context_length: int | None, tied: bool) -> dict[str, Any]:
    """params.json of Llama 4 (llama-models, llama4/args.py and model.py)."""
    record.refuse_unknown(META_KEYS)
    dim, n_heads = record.integer("dim"), record.integer("n_heads")
    require(0 < dim < 2**29, "dim", "from 1 to 536870911", dim)
    n_layers = record.integer("n_layers")
    scaled = record.flag("use_scaled_rope", False)
    no_rope_every = record.integer("nope_layer_interval") if record.has("nope_layer_interval") else None
    chunk = record.integer("attention_chunk_size") if record.has("attention_chunk_size") else None
    tuned = record.flag("attn_temperature_tuning", False) and no_rope_every is not None
    return {
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": record.integer("n_kv_heads", n_heads),
        "head_dim": dim // max(n_heads, 1),  # Meta's Attention does not read head_dim either
        "ffn_dim": _meta_ffn_dim(record, 4 * dim, 1.0),
        "vocab_size": vocab_size,
        "norm_eps": record.number("norm_eps", 1e-5),
        "rope_theta": record.number("rope_theta", 500000.0),
        # not in the file: Scout, which alone scales its rope, and Maverick as published
        "context_length": context_length or (10485760 if scaled else 1048576),
        "tied": tied,
        "rope_scaling": _meta_scaling(record) if scaled else None,
        "experts": _meta_experts(record, dim),
        "attention_chunk": chunk,
        "no_rope_every": no_rope_every,
        "qk_norm": record.flag("use_qk_norm", False),
        "query_temperature": _meta_temperature(record) if tuned else None,
        "vision": _meta_vision(record.section("vision_args")) if record.has("vision_args") else None,
    }


def _meta_scaling(record: Record) -> RopeScaling:
    return RopeScaling(
        "llama3",
        factor=record.number("rope_scaling_factor", 16.0),
        high_freq_factor=record.number("rope_high_freq_factor", 1.0),
    )


def _meta_temperature(record: Record) -> QueryTemperature:
    return QueryTemperature(record.number("floor_scale", 8192.0), record.number("attn_scale", 0.1))


def _meta_experts(record: Record, dim: int) -> ExpertsConfig | None:
    if not record.has("moe_args"):
        return None
    moe = record.section("moe_args")
    moe.refuse_unknown(
        ("num_experts", "capacity_factor", "auto_scale_F", "top_k", "interleave_moe_layer_step")
    )
    # with auto_scale_F, expert and shared expert together are as wide as the dense layer would be
    capacity = moe.number("capacity_factor", 1.0) + 1 if moe.flag("auto_scale_F", True) else 1.0
    require(capacity > 0, "capacity_factor", "above -1", capacity - 1)
    ffn_dim = _meta_ffn_dim(record, whole(record.number("ffn_exp") * dim, "ffn_exp * dim"), capacity)
    return ExpertsConfig(
        n_experts=moe.integer("num_experts"),
        n_active=moe.integer("top_k", 1),
        expert_ffn_dim=ffn_dim,
        shared_ffn_dim=ffn_dim,
        every=moe.integer("interleave_moe_layer_step", 1),
    )


def _meta_ffn_dim(record: Record, hidden: int, divisor: float) -> int:
    """Two thirds of `hidden`, times the multiplier, over `divisor`, rounded up to the multiple."""
    multiple_of = record.integer("multiple_of", 256)
    require(multiple_of > 0, "multiple_of", "above 0", multiple_of)
    wide = whole(record.number("ffn_dim_multiplier", 1.0) * int(2 * hidden / 3), "ffn_dim")
    width = whole(wide / divisor, "ffn_dim")
    return multiple_of * -(-width // multiple_of)


def _meta_vision(vision: Record) -> Llama4VisionConfig:
    dim = vision.integer("dim")
    require(0 < dim < 2**31, "vision dim", "from 1 to 2147483647", dim)
    return Llama4VisionConfig(
        tile_size=_meta_side(vision, "image_size"),
        dim=dim,
        n_layers=vision.integer("n_layers"),
        n_heads=vision.integer("n_heads"),
        ffn_dim=whole(dim * vision.number("mlp_ratio"), "vision mlp_ratio * dim"),
        patch_size=_meta_side(vision, "patch_size"),
        pixel_shuffle=vision.number("pixel_shuffle_ratio"),
        adapter_dim=vision.integer("output_dim"),
    )


def _meta_side(vision: Record, key: str) -> int:
    size = vision.section(key)
    sides = (size.integer("height"), size.integer("width"))
    require(sides[0] == sides[1], f"vision {key}", "a square", sides)
    return sides[0]


def gguf_llama4(record: Record) -> dict[str, Any]:
    """What llama.cpp's loader makes of architecture `llama4`: several constants are not in the file."""
    n_experts = record.integer("llama4.expert_count", 0)
    window = record.integer("llama4.attention.sliding_window", 8192)
    if window not in (0, 8192):
        raise Unsupported(
            f"{record.what} sets 'llama4.attention.sliding_window' to {window}, and llama.cpp runs "
            "Llama 4 with chunks of 8192 or, at 0, without; convert the checkpoint again"
        )
    record.refuse_unless("llama4.expert_gating_func", 2, "a router that is not a sigmoid")
    chunked = window != 0  # without chunks llama.cpp also rotates every layer
    return {
        "experts": _gguf_experts(record, n_experts) if n_experts else None,
        "attention_chunk": 8192 if chunked else None,
        "no_rope_every": 4 if chunked else None,
        "qk_norm": n_experts != 128,  # Maverick has none
        "query_temperature": QueryTemperature() if chunked else None,
    }


def _gguf_experts(record: Record, n_experts: int) -> ExpertsConfig:
    ffn_dim = record.uniform("llama4.expert_feed_forward_length")
    return ExpertsConfig(
        n_experts=n_experts,
        n_active=record.integer("llama4.expert_used_count"),
        expert_ffn_dim=ffn_dim,
        shared_ffn_dim=record.uniform("llama4.expert_shared_feed_forward_length", ffn_dim),
        every=record.integer("llama4.interleave_moe_layer_step"),
    )
