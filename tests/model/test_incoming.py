"""Foreign tensors cut into ours: Meta's load hooks (llama-models) done by hand, and names of every scheme."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from puna.core import Unsupported
from puna.model import names
from puna.model.config import (
    ExpertsConfig,
    Llama4VisionConfig,
    Llama32VisionConfig,
    ModelConfig,
    QueryTemperature,
)
from puna.model.incoming import incoming

DENSE = ModelConfig(16, 3, 4, 2, 4, 24, 12, 1e-5, 1e4, 64, tied=False)
LLAMA4 = replace(
    DENSE,
    experts=ExpertsConfig(3, 1, 6, 6, every=2),
    attention_chunk=8,
    no_rope_every=2,
    qk_norm=True,
    query_temperature=QueryTemperature(),
    vision=Llama4VisionConfig(tile_size=28, dim=8, n_layers=1, n_heads=2, ffn_dim=32, adapter_dim=6),
)
MLLAMA = replace(
    DENSE,
    cross_attention=(1, 2),
    n_image_embeddings=8,
    vision=Llama32VisionConfig(28, 8, 2, 1, 2, 16, intermediate_layers=(0,)),
)


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def cut(scheme: names.Scheme, name: str, array: np.ndarray, cfg: ModelConfig) -> dict[str, Any]:
    return {piece.ours: piece.of(array) for piece in incoming(scheme, name, cfg)}


def test_plain_names_stay_what_they_are() -> None:
    for scheme, write in (("meta", names.to_meta), ("hf", names.to_hf), ("gguf", names.to_gguf)):
        for ours, shape in names.shapes(DENSE):
            (got,) = cut(scheme, write(ours), numbered(*shape), DENSE).items()
            assert got[0] == ours
            if scheme != "hf" or not ours.endswith((".wq", ".wk")):
                assert np.array_equal(got[1], numbered(*shape))


def test_hf_rows_are_put_in_order_for_llama_3_and_left_for_llama_4() -> None:
    rows = numbered(16, 16)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(cut("hf", name, rows, DENSE)["layers.0.wq"], names.unpermute(rows, 4))
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(cut("hf", name, rows, LLAMA4)["layers.0.wq"], rows)


def test_hf_experts_are_transposed_and_split() -> None:
    """transformers, Llama4TextExperts: gate, up = (x @ gate_up_proj).chunk(2, dim=-1); then @ down_proj."""
    prefix = "language_model.model.layers.1.feed_forward"
    fused = numbered(3, 16, 12)
    got = cut("hf", f"{prefix}.experts.gate_up_proj", fused, LLAMA4)
    x = numbered(16)
    for e in range(3):
        gate, up = np.split(x @ fused[e], 2)
        assert np.array_equal(got["layers.1.experts_w1"][e] @ x, gate)
        assert np.array_equal(got["layers.1.experts_w3"][e] @ x, up)
    down = cut("hf", f"{prefix}.experts.down_proj", numbered(3, 6, 16), LLAMA4)["layers.1.experts_w2"]
    assert down.shape == (3, 16, 6)
    assert list(cut("hf", f"{prefix}.router.weight", numbered(3, 16), LLAMA4)) == ["layers.1.router"]


def test_meta_experts_as_its_load_hook_views_them() -> None:
    """moe.py: moe_w_in_eD_F.view(e, D, F) is w1, and x @ w1[e] is the gate."""
    prefix = "layers.1.feed_forward"
    flat, x = numbered(3 * 16, 6), numbered(16)
    for theirs, ours in (("moe_w_in_eD_F", "experts_w1"), ("moe_w_swiglu_eD_F", "experts_w3")):
        got = cut("meta", f"{prefix}.experts.{theirs}", flat, LLAMA4)[f"layers.1.{ours}"]
        assert np.array_equal(got @ x, np.stack([x @ flat.reshape(3, 16, 6)[e] for e in range(3)]))
    out = cut("meta", f"{prefix}.experts.moe_w_out_eF_D", numbered(18, 16), LLAMA4)["layers.1.experts_w2"]
    assert np.array_equal(out, numbered(3, 6, 16).swapaxes(1, 2))
    router = cut("meta", f"{prefix}.router_DE", numbered(16, 3), LLAMA4)["layers.1.router"]
    assert np.array_equal(router, numbered(16, 3).T)
    shared = [
        f"{prefix}.w_in_shared_FD.weight",
        f"{prefix}.w_out_shared_DF.weight",
        f"{prefix}.w_swiglu_FD.weight",
    ]
    found = [incoming("meta", name, LLAMA4)[0].ours for name in shared]
    assert found == ["layers.1.shared_w1", "layers.1.shared_w2", "layers.1.shared_w3"]


def test_meta_fused_tensors_as_its_load_hooks_split_them() -> None:
    rows = numbered(32, 16)
    got = cut("meta", "layers.0.attention.wqkv.weight", rows, LLAMA4)
    expected = np.split(rows, [16, 24])
    for part, want in zip(("wq", "wk", "wv"), expected, strict=True):
        assert np.array_equal(got[f"layers.0.{part}"], want)
    got = cut("meta", "layers.0.feed_forward.mlp.fc1_weight", numbered(48, 16), LLAMA4)
    assert np.array_equal(got["layers.0.w1"], numbered(48, 16)[:24])
    assert np.array_equal(got["layers.0.w3"], numbered(48, 16)[24:])
    for theirs, ours in (
        ("attention.wqkv.layer_norm_weight", "attention_norm"),
        ("feed_forward.mlp.layer_norm_weight", "ffn_norm"),
        ("feed_forward.norm.weight", "ffn_norm"),
        ("feed_forward.mlp.fc2_weight", "w2"),
    ):
        assert incoming("meta", f"layers.0.{theirs}", LLAMA4)[0].ours == f"layers.0.{ours}"


def test_hf_numbers_cross_attention_layers_among_the_others() -> None:
    """Ours 0, [cross 0], 1, [cross 1], 2 are theirs 0 to 4."""
    found = [
        incoming("hf", f"model.language_model.layers.{i}.input_layernorm.weight", MLLAMA)[0].ours
        for i in range(5)
    ]
    cross = "cross_attention_layers"
    assert found == [
        "layers.0.attention_norm",
        f"{cross}.0.attention_norm",
        "layers.1.attention_norm",
        f"{cross}.1.attention_norm",
        "layers.2.attention_norm",
    ]
    old = incoming("hf", "language_model.model.layers.3.cross_attn_mlp_gate", MLLAMA)
    assert old[0].ours == f"{cross}.1.gate_ffn"
    assert incoming("gguf", "blk.3.cross_attn_q_norm.weight", MLLAMA)[0].ours == f"{cross}.1.q_norm"
    assert incoming("gguf", "blk.4.attn_q.weight", MLLAMA)[0].ours == "layers.2.wq"


def test_image_embeddings_are_rows_behind_the_vocabulary() -> None:
    for scheme, name in (("hf", "language_model.model.embed_tokens.weight"), ("gguf", "token_embd.weight")):
        got = cut(scheme, name, numbered(20, 16), MLLAMA)
        assert np.array_equal(got["tok_embeddings"], numbered(20, 16)[:12])
        assert np.array_equal(got["image_embeddings"], numbered(20, 16)[12:])
    assert list(cut("meta", "text_model.learnable_embedding.weight", numbered(8, 16), MLLAMA)) == [
        "image_embeddings"
    ]


def test_meta_gates_repeat_one_value() -> None:
    got = cut("meta", "text_model.cross_attention_layers.0.gate_ffwd", numbered(16) + 5, MLLAMA)
    assert got["cross_attention_layers.0.gate_ffn"].tolist() == [5.0]


def test_meta_tables_of_tiles_become_tables_of_grids() -> None:
    """llama-models, TilePositionEmbedding: a grid (h, w) takes embedding[:h, :w] in row-major order."""
    table = numbered(4, 4, 1, 8)
    name = "vision_model.vision_encoder.pre_tile_pos_embed.embedding"
    got = cut("meta", name, table, MLLAMA)["vision.pre_tile_pos_embed"]
    assert got.shape == dict(names.shapes(MLLAMA))["vision.pre_tile_pos_embed"]
    assert not got[0].any()
    for i, (h, w) in enumerate(MLLAMA.vision.aspect_ratios, start=1):
        rows = got[i].reshape(4, 8)
        assert np.array_equal(rows[: h * w], table[:h, :w].reshape(h * w, 8))
        assert not rows[h * w :].any()


@pytest.mark.parametrize(
    ("meta", "hf", "ours", "cfg"),
    [
        ("vision_model.vision_encoder.transformer.resblocks.1.attn.wq.weight",
         "vision_model.transformer.layers.1.self_attn.q_proj.weight", "vision.layers.1.wq", MLLAMA),
        ("vision_model.vision_encoder.global_transformer.resblocks.0.gate_attn",
         "model.vision_model.global_transformer.layers.0.gate_attn",
         "vision.global_layers.0.gate_attn", MLLAMA),
        ("vision_model.vision_encoder.ln_post.bias", "vision_model.layernorm_post.bias",
         "vision.ln_post_bias", MLLAMA),
        ("vision_model.vision_projection.bias", "multi_modal_projector.bias",
         "vision_projection_bias", MLLAMA),
        ("vision_embeddings.vision_encoder.transformer.resblocks.0.mlp.c_fc.bias",
         "vision_model.model.layers.0.mlp.fc1.bias", "vision.layers.0.c_fc_bias", LLAMA4),
        ("vision_embeddings.vision_encoder.positional_embedding_vlm", "vision_model.positional_embedding_vlm",
         "vision.positional_embedding", LLAMA4),
        ("vision_embeddings.vision_adapter.mlp.c_proj.weight", "vision_model.vision_adapter.mlp.fc2.weight",
         "vision_adapter.c_proj", LLAMA4),
        ("vision_projection.weight", "multi_modal_projector.linear_1.weight", "vision_projection", LLAMA4),
    ],
)  # fmt: skip
def test_vision_names(meta: str, hf: str, ours: str, cfg: ModelConfig) -> None:
    assert [piece.ours for piece in incoming("meta", meta, cfg)] == [ours]
    assert [piece.ours for piece in incoming("hf", hf, cfg)] == [ours]


def test_patches_are_flattened() -> None:
    got = cut("hf", "vision_model.patch_embedding.weight", numbered(8, 3, 14, 14), MLLAMA)["vision.conv1"]
    assert np.array_equal(got, numbered(8, 588))


@pytest.mark.parametrize(
    "name",
    ["layers.0.attention.wo._extra_state", "rope.freqs", "layers.0.feed_forward.running_gate_stats_3E"],
)
def test_nothing_new(name: str) -> None:
    assert incoming("meta", name, LLAMA4) == ()


@pytest.mark.parametrize(
    ("scheme", "name", "cfg"),
    [
        ("hf", "vision_model.patch_embedding.weight", DENSE),
        ("hf", "model.layers.1.feed_forward.experts.gate_up_proj", DENSE),
        ("hf", "model.layers.1.cross_attn.q_proj.bias", MLLAMA),
        ("hf", "vision_model.model.layers.0.mlp.fc3.weight", LLAMA4),
        ("meta", "cross_attention_layers.0.attention.wkv.weight", MLLAMA),
        ("meta", "layers.0.attention.wq", DENSE),
        ("gguf", "v.patch_embd.weight", DENSE),
        ("gguf", "", DENSE),
    ],
)
def test_unknown_is_refused_by_name(scheme: names.Scheme, name: str, cfg: ModelConfig) -> None:
    with pytest.raises(Unsupported) as caught:
        incoming(scheme, name, cfg)
    assert repr(name) in str(caught.value)
