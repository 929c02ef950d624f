"""Names in every scheme, shapes, and the two orders of query and key rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from golden.tiny import TINY

from puna.core import BadFile, Unsupported
from puna.model import names
from puna.model.block import LayerWeights, Weights

CFG = TINY["llama2"].config
SCHEMES = [
    (names.from_meta, names.to_meta),
    (names.from_hf, names.to_hf),
    (names.from_gguf, names.to_gguf),
]


@pytest.mark.parametrize(("read", "write"), SCHEMES)
def test_both_ways(read, write) -> None:
    for name, _ in names.shapes(CFG):
        assert read(write(name)) == name


@pytest.mark.parametrize(
    ("read", "foreign", "ours"),
    [
        (names.from_meta, "layers.31.feed_forward.w2.weight", "layers.31.w2"),
        (names.from_meta, "tok_embeddings.weight", "tok_embeddings"),
        (names.from_hf, "model.layers.3.post_attention_layernorm.weight", "layers.3.ffn_norm"),
        (names.from_hf, "lm_head.weight", "output"),
        (names.from_gguf, "blk.0.ffn_gate.weight", "layers.0.w1"),
        (names.from_gguf, "rope_freqs.weight", "rope_factors"),
        (names.from_meta, "rope.freqs", None),
        (names.from_hf, "model.layers.0.self_attn.rotary_emb.inv_freq", None),
        (names.from_gguf, "blk.0.attn_rot_embd.weight", None),
    ],
)
def test_known(read, foreign: str, ours: str | None) -> None:
    assert read(foreign) == ours


@pytest.mark.parametrize(
    ("read", "foreign"),
    [
        (names.from_gguf, "blk.0.attn_q.bias"),
        (names.from_gguf, "blk.0.attn_q"),
        (names.from_gguf, "blk.00.attn_q.weight"),
        (names.from_gguf, "blk.-1.attn_q.weight"),
        (names.from_gguf, "blk.0.ffn_gate_exps.bias"),
        (names.from_hf, "blk.0.attn_q.weight"),
        (names.from_hf, "model.layers.0.self_attn.q_proj.qweight"),
        (names.from_meta, "layers.0.attention.wqkv.weight"),
        (names.from_meta, ".weight"),
        (names.from_meta, ""),
    ],
)
def test_unknown_is_refused_by_name(read, foreign: str) -> None:
    with pytest.raises(Unsupported) as caught:
        read(foreign)
    assert repr(foreign) in str(caught.value)


@pytest.mark.parametrize("write", [names.to_meta, names.to_hf])
def test_rope_factors_live_in_gguf_only(write) -> None:
    with pytest.raises(Unsupported, match="rope_factors"):
        write("rope_factors")


def test_permute_is_hugging_faces() -> None:
    """The published conversion: view(heads, C/2, 2, D), exchange the middle axes."""
    n_heads, head_dim, dim = 3, 8, 5
    rows = np.arange(n_heads * head_dim * dim, dtype=np.float32).reshape(-1, dim)
    halves = names.permute(rows, n_heads)
    for head in range(n_heads):
        for i in range(head_dim // 2):
            for part in (0, 1):
                from_row, to_row = head * head_dim + 2 * i + part, head * head_dim + part * head_dim // 2 + i
                assert np.array_equal(halves[to_row], rows[from_row])
    assert np.array_equal(names.unpermute(halves, n_heads), rows)


def test_permute_moves_raw_rows() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (64, 34), np.uint8)
    moved = names.permute(raw, 2)
    assert moved.dtype == np.uint8
    assert sorted(map(bytes, moved)) == sorted(map(bytes, raw))
    assert np.array_equal(names.unpermute(moved, 2), raw)


def test_shapes_are_those_of_the_definition() -> None:
    found = dict(names.shapes(CFG))
    parts = {f.name for f in dataclasses.fields(LayerWeights)} - {"experts"}  # of Llama 4 only
    assert {n.split(".")[-1] for n in found if n.startswith("layers.")} == parts
    assert set(found) - {n for n in found if "." in n} == {"tok_embeddings", "norm", "output"}
    names.check_shapes(CFG, found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers.1.w2": None}, "lacks the tensor 'layers.1.w2'"),
        ({"layers.1.w2": (352, 128)}, r"'layers.1.w2' must have shape \(128, 352\).*found \(352, 128\)"),
        ({"layers.2.w2": (128, 352)}, "holds 'layers.2.w2'"),
    ],
)
def test_wrong_tensors_are_named(change: dict, said: str) -> None:
    found = {k: v for k, v in (dict(names.shapes(CFG)) | change).items() if v is not None}
    with pytest.raises(BadFile, match=said):
        names.check_shapes(CFG, found)


def test_tied_checkpoint_may_store_its_output() -> None:
    tied = TINY["llama32"].config
    assert "output" not in dict(names.shapes(tied))
    names.check_shapes(tied, dict(names.shapes(tied)) | {"output": (96, 128)})


def test_an_absurd_number_of_layers_costs_nothing() -> None:
    absurd = dataclasses.replace(CFG, n_layers=2**31 - 1)
    with pytest.raises(BadFile, match=r"lacks .*layers\.2\."):
        names.check_shapes(absurd, dict(names.shapes(CFG)))


def test_assemble() -> None:
    tensors = {name: name for name, _ in names.shapes(CFG)}
    weights = names.assemble(CFG, tensors, "rope")
    assert isinstance(weights, Weights)
    assert weights.layers[1].wo == "layers.1.wo"
    assert weights.output == "output"
    tied = TINY["llama32"].config
    assert names.assemble(tied, tensors, None).output == "tok_embeddings"
