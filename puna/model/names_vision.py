"""Names and shapes of the tensors of image encoders: ours, Meta's and Hugging Face's.

Ours are Meta's without the redundant parts: `vision.conv1`, `vision.layers.{i}.wq`, `vision_projection`; a
bias is named after its matrix with `_bias`. incoming.py reads the foreign names with these tables.

Shapes: D width of the encoder, F its feed-forward, P values of a patch, T tokens of a tile with the class
token, N tiles, A grids of tiles and one more that stands for none.
"""

from __future__ import annotations

from collections.abc import Iterator

from puna.model.vision_config import Llama4VisionConfig, Llama32VisionConfig, VisionConfig

Shape = tuple[int, ...]

# ours -> Meta's, Hugging Face's and GGUF's, without what stands before all of an encoder's. GGUF's are
# llama.cpp's of vision files (mmproj); it has none for Llama 3.2's tiles and gates, whose are our own.
LLAMA32_TOP = {
    "conv1": ("conv1._linear.weight", "patch_embedding.weight", "patch_embd.weight"),
    "class_embedding": ("class_embedding", "class_embedding", "class_embd"),
    "positional_embedding": (
        "positional_embedding",
        "gated_positional_embedding.embedding",
        "position_embd.weight",
    ),
    # by grid of tiles as Hugging Face has them; Meta's tables by row and column are read with other shapes
    "gated_positional_embedding": (
        "",
        "gated_positional_embedding.tile_embedding.weight",
        "tile_position_embd.weight",
    ),
    "gated_positional_embedding_gate": (
        "gated_positional_embedding_gate",
        "gated_positional_embedding.gate",
        "tile_position_embd.gate",
    ),
    "pre_tile_pos_embed": (
        "",
        "pre_tile_positional_embedding.embedding.weight",
        "pre_tile_position_embd.weight",
    ),
    "pre_tile_pos_embed_gate": (
        "pre_tile_pos_embed.gate",
        "pre_tile_positional_embedding.gate",
        "pre_tile_position_embd.gate",
    ),
    "post_tile_pos_embed": (
        "",
        "post_tile_positional_embedding.embedding.weight",
        "post_tile_position_embd.weight",
    ),
    "post_tile_pos_embed_gate": (
        "post_tile_pos_embed.gate",
        "post_tile_positional_embedding.gate",
        "post_tile_position_embd.gate",
    ),
    "ln_pre": ("ln_pre.weight", "layernorm_pre.weight", "pre_ln.weight"),
    "ln_pre_bias": ("ln_pre.bias", "layernorm_pre.bias", "pre_ln.bias"),
    "ln_post": ("ln_post.weight", "layernorm_post.weight", "post_ln.weight"),
    "ln_post_bias": ("ln_post.bias", "layernorm_post.bias", "post_ln.bias"),
}
LLAMA4_TOP = {
    "conv1": ("conv1._linear.weight", "patch_embedding.linear.weight", "patch_embd.weight"),
    "class_embedding": ("class_embedding", "class_embedding", "class_embd"),
    "positional_embedding": ("positional_embedding_vlm", "positional_embedding_vlm", "position_embd.weight"),
    "ln_pre": ("ln_pre.weight", "layernorm_pre.weight", "pre_ln.weight"),
    "ln_pre_bias": ("ln_pre.bias", "layernorm_pre.bias", "pre_ln.bias"),
    "ln_post": ("ln_post.weight", "layernorm_post.weight", "post_ln.weight"),
    "ln_post_bias": ("ln_post.bias", "layernorm_post.bias", "post_ln.bias"),
}
# of both encoders; Llama 3.2 has no bias in attention, and gates in its global layers only
LAYER = {
    "ln_1": ("ln_1.weight", "input_layernorm.weight", "ln1.weight"),
    "ln_1_bias": ("ln_1.bias", "input_layernorm.bias", "ln1.bias"),
    "wq": ("attn.wq.weight", "self_attn.q_proj.weight", "attn_q.weight"),
    "wq_bias": ("attn.wq.bias", "self_attn.q_proj.bias", "attn_q.bias"),
    "wk": ("attn.wk.weight", "self_attn.k_proj.weight", "attn_k.weight"),
    "wk_bias": ("attn.wk.bias", "self_attn.k_proj.bias", "attn_k.bias"),
    "wv": ("attn.wv.weight", "self_attn.v_proj.weight", "attn_v.weight"),
    "wv_bias": ("attn.wv.bias", "self_attn.v_proj.bias", "attn_v.bias"),
    "wo": ("attn.wo.weight", "self_attn.o_proj.weight", "attn_out.weight"),
    "wo_bias": ("attn.wo.bias", "self_attn.o_proj.bias", "attn_out.bias"),
    "ln_2": ("ln_2.weight", "post_attention_layernorm.weight", "ln2.weight"),
    "ln_2_bias": ("ln_2.bias", "post_attention_layernorm.bias", "ln2.bias"),
    "c_fc": ("mlp.c_fc.weight", "mlp.fc1.weight", "ffn_up.weight"),
    "c_fc_bias": ("mlp.c_fc.bias", "mlp.fc1.bias", "ffn_up.bias"),
    "c_proj": ("mlp.c_proj.weight", "mlp.fc2.weight", "ffn_down.weight"),
    "c_proj_bias": ("mlp.c_proj.bias", "mlp.fc2.bias", "ffn_down.bias"),
    "gate_attn": ("gate_attn", "gate_attn", "gate_attn"),
    "gate_ffn": ("gate_ffn", "gate_ffn", "gate_ffn"),
}

# the ends, by kind of encoder: ours -> the three others, whole
LLAMA4_ENDS = {
    "vision_adapter.c_fc": (
        "vision_embeddings.vision_adapter.mlp.c_fc.weight",
        "vision_model.vision_adapter.mlp.fc1.weight",
        "mm.model.mlp.1.weight",
    ),
    "vision_adapter.c_proj": (
        "vision_embeddings.vision_adapter.mlp.c_proj.weight",
        "vision_model.vision_adapter.mlp.fc2.weight",
        "mm.model.mlp.2.weight",
    ),
    "vision_projection": (
        "vision_projection.weight",
        "multi_modal_projector.linear_1.weight",
        "mm.model.fc.weight",
    ),
}
LLAMA32_ENDS = {
    "vision_projection": (
        "vision_model.vision_projection.weight",
        "multi_modal_projector.weight",
        "mm.model.fc.weight",
    ),
    "vision_projection_bias": (
        "vision_model.vision_projection.bias",
        "multi_modal_projector.bias",
        "mm.model.fc.bias",
    ),
}


def vision_shapes(cfg: VisionConfig, text_dim: int) -> Iterator[tuple[str, Shape]]:
    """Our names with row-major shapes of the encoder and its projection, in the order of use."""
    if isinstance(cfg, Llama32VisionConfig):
        yield from _llama32(cfg, text_dim)
    else:
        yield from _llama4(cfg, text_dim)


def _llama32(cfg: Llama32VisionConfig, text_dim: int) -> Iterator[tuple[str, Shape]]:
    d, t = cfg.dim, cfg.tokens_per_tile
    grids = len(cfg.aspect_ratios) + 1
    top: dict[str, Shape] = {
        "conv1": (d, 3 * cfg.patch_size**2),
        "class_embedding": (d,),
        "positional_embedding": (t, d),
        "gated_positional_embedding": (grids, cfg.max_tiles * t * d),
        "gated_positional_embedding_gate": (1,),
        "pre_tile_pos_embed": (grids, cfg.max_tiles * d),
        "pre_tile_pos_embed_gate": (1,),
        "post_tile_pos_embed": (grids, cfg.max_tiles * d),
        "post_tile_pos_embed_gate": (1,),
    }
    yield from ((f"vision.{name}", shape) for name, shape in (top | _end_norms(d)).items())
    layer = {k: s for k, s in _layer(d, cfg.ffn_dim).items() if k not in _ATTENTION_BIAS}
    for i in range(cfg.n_layers):
        yield from ((f"vision.layers.{i}.{part}", shape) for part, shape in layer.items())
    gates: dict[str, Shape] = {"gate_attn": (1,), "gate_ffn": (1,)}
    for i in range(cfg.n_global_layers):
        yield from ((f"vision.global_layers.{i}.{part}", shape) for part, shape in (layer | gates).items())
    yield "vision_projection", (text_dim, cfg.output_dim)
    yield "vision_projection_bias", (text_dim,)


def _llama4(cfg: Llama4VisionConfig, text_dim: int) -> Iterator[tuple[str, Shape]]:
    d = cfg.dim
    top: dict[str, Shape] = {
        "conv1": (d, 3 * cfg.patch_size**2),
        "class_embedding": (d,),
        "positional_embedding": ((cfg.tile_size // cfg.patch_size) ** 2 + 1, d),
    }
    yield from ((f"vision.{name}", shape) for name, shape in (top | _end_norms(d)).items())
    for i in range(cfg.n_layers):
        yield from ((f"vision.layers.{i}.{part}", shape) for part, shape in _layer(d, cfg.ffn_dim).items())
    yield "vision_adapter.c_fc", (cfg.adapter_dim, cfg.shuffled_dim)
    yield "vision_adapter.c_proj", (cfg.adapter_dim, cfg.adapter_dim)
    yield "vision_projection", (text_dim, cfg.adapter_dim)


_ATTENTION_BIAS = ("wq_bias", "wk_bias", "wv_bias", "wo_bias")


def _end_norms(d: int) -> dict[str, Shape]:
    return {"ln_pre": (d,), "ln_pre_bias": (d,), "ln_post": (d,), "ln_post_bias": (d,)}


def _layer(d: int, f: int) -> dict[str, Shape]:
    norms: dict[str, Shape] = {"ln_1": (d,), "ln_1_bias": (d,), "ln_2": (d,), "ln_2_bias": (d,)}
    matrices: dict[str, Shape] = dict.fromkeys(("wq", "wk", "wv", "wo"), (d, d))
    biases: dict[str, Shape] = dict.fromkeys(_ATTENTION_BIAS, (d,))
    ffn: dict[str, Shape] = {"c_fc": (f, d), "c_fc_bias": (f,), "c_proj": (d, f), "c_proj_bias": (d,)}
    return norms | matrices | biases | ffn
