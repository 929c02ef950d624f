"""Foreign tensors of any Llama as parts of ours: fused, transposed and differently numbered ones included.

`incoming` gives a tensor's parts under our names; `Slice.of` cuts one out of the array. What is a plain
renaming stands in names.py and names_vision.py; here are the layouts of Llama 4 and Llama 3.2 Vision.

Shapes: D dim, F expert_ffn_dim, E experts, H query heads, K key/value heads, C head_dim, R rows, X any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import Unsupported
from puna.model import names
from puna.model.config import ModelConfig
from puna.model.names import CROSS_TABLE, Scheme, permute, unpermute
from puna.model.names_vision import LAYER, LLAMA4_ENDS, LLAMA4_TOP, LLAMA32_ENDS, LLAMA32_TOP
from puna.model.vision_config import Llama4VisionConfig, Llama32VisionConfig


@dataclass(frozen=True, slots=True)
class Slice:
    """One of our tensors inside a foreign one. Steps apply in the order of the fields; most do nothing."""

    ours: str
    view: tuple[int, ...] = ()  # the foreign tensor reshaped
    cut: tuple[int, int, int] | None = None  # axis, start, stop
    swap: bool = False  # exchange the last two axes
    heads: int = 0  # rows of so many heads come in Hugging Face's order
    tiles: Llama32VisionConfig | None = None  # a table by row and column of tiles becomes one by grid

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Our tensor from the foreign one; a view of it where no element has to move."""
        if self.view:
            array = array.reshape(self.view)
        if self.cut is not None:
            axis, start, stop = self.cut
            array = array[(slice(None),) * axis + (slice(start, stop),)]
        if self.swap:
            array = array.swapaxes(-1, -2)
        if self.heads:
            array = unpermute(array, self.heads)
        return array if self.tiles is None else _by_grid(array, self.tiles)

    def into(self, foreign: NDArray[Any], ours: NDArray[Any]) -> None:
        """Write our tensor to its place in a contiguous foreign one: the inverse of `of`.

        Raises Unsupported where the foreign form cannot hold it.
        """
        if self.tiles is not None:
            ours = _by_tile(ours, self.tiles, foreign.shape)
        if self.heads:
            ours = permute(ours, self.heads)
        if self.swap:
            ours = ours.swapaxes(-1, -2)
        place = foreign.reshape(self.view) if self.view else foreign
        if self.cut is not None:
            axis, start, stop = self.cut
            place = place[(slice(None),) * axis + (slice(start, stop),)]
        place[...] = ours

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape that `of` makes of a tensor of `shape`; None where it can make nothing of it."""
        if self.view:
            if prod(self.view) != prod(shape):
                return None
            shape = self.view
        if self.cut is not None:
            axis, start, stop = self.cut
            if len(shape) <= axis or stop > shape[axis]:
                return None
            shape = (*shape[:axis], stop - start, *shape[axis + 1 :])
        if self.swap:
            if len(shape) < 2:
                return None
            shape = (*shape[:-2], shape[-1], shape[-2])
        if self.heads and (len(shape) != 2 or shape[0] % (2 * self.heads)):
            return None
        if self.tiles is None:
            return shape
        n = self.tiles.max_tiles
        grids = len(self.tiles.aspect_ratios) + 1
        return (grids, n * shape[2] * shape[3]) if len(shape) == 4 and shape[:2] == (n, n) else None


def is_llama4(cfg: ModelConfig) -> bool:
    """Whether a checkpoint uses Llama 4's names and row order, which dense ones without vision do not."""
    marks = (cfg.experts, cfg.attention_chunk, cfg.no_rope_every, cfg.qk_norm)
    return isinstance(cfg.vision, Llama4VisionConfig) or any(marks)


def incoming(scheme: Scheme, name: str, cfg: ModelConfig) -> tuple[Slice, ...]:
    """The parts of a foreign tensor, none where it holds nothing new; Unsupported for a name no Llama has.

    Shapes are not looked at: names.check_shapes does that for the results.
    """
    common = _without_prefix(scheme, name)
    others = {"meta": _meta, "hf": _hf, "gguf": _gguf}[scheme]
    found = list(_vision(scheme, common, cfg) or others(common, cfg))
    if not found and not _DERIVED.search(name):
        raise Unsupported(
            f"tensor {name!r} is not part of the Llama that the configuration describes; "
            "Puna would have to leave it out, so it does not run this checkpoint"
        )
    return tuple(found)


# states of other software, and rotary tables: nothing that the configuration does not say
_DERIVED = re.compile(
    r"rope\.freqs$|rotary_emb\.inv_freq$|attn_rot_embd\.weight$|\._extra_state$|running_gate_stats_3E$"
)

_PREFIXES = {
    "hf": (
        (r"language_model\.lm_head", "lm_head"),
        (r"language_model\.model\.", "model."),
        (r"model\.language_model\.", "model."),
        (r"model\.(vision_model|multi_modal_projector)", r"\1"),
        (r"vision_model\.vision_adapter\.mlp\.fc1", "vision_adapter.c_fc"),
        (r"vision_model\.vision_adapter\.mlp\.fc2", "vision_adapter.c_proj"),
        (r"multi_modal_projector\.linear_1|multi_modal_projector", "vision_projection"),
        (r"vision_model\.(?:model|transformer)\.layers\.", "vision.layers."),
        (r"vision_model\.global_transformer\.layers\.", "vision.global_layers."),
        (r"vision_model\.", "vision."),
    ),
    "meta": (
        (r"text_model\.", ""),
        (r"(?:vision_model|vision_embeddings)\.vision_projection", "vision_projection"),
        (r"vision_embeddings\.vision_adapter\.mlp\.", "vision_adapter."),
        (r"(?:vision_model|vision_embeddings)\.vision_encoder\.", "vision."),
        (r"vision\.transformer\.resblocks\.", "vision.layers."),
        (r"vision\.global_transformer\.resblocks\.", "vision.global_layers."),
    ),
    "gguf": (
        # gguf 0.17 and later give a name of Gemma's to one of Llama 4's norms (its tensor_mapping.py)
        (r"v\.blk\.(\d{1,9})\.attn_post_norm\.", r"vision.layers.\1.ln2."),
        (r"v\.blk\.", "vision.layers."),
        (r"v\.global\.blk\.", "vision.global_layers."),
        (r"v\.", "vision."),
    ),
}


def _without_prefix(scheme: Scheme, name: str) -> str:
    for pattern, replacement in _PREFIXES[scheme]:
        name = re.sub(f"^(?:{pattern})", replacement, name)
    return name


def _renamed(scheme: Scheme, name: str, cfg: ModelConfig) -> Iterator[Slice]:
    """A tensor of the plain tables."""
    try:
        ours = {"meta": names.from_meta, "hf": names.from_hf, "gguf": names.from_gguf}[scheme](name)
    except Unsupported:
        return
    if ours is not None:
        part = ours.rpartition(".")[2]
        halves = scheme == "hf" and part in names.PERMUTED and not is_llama4(cfg)
        yield Slice(ours, heads=(cfg.n_heads if part == "wq" else cfg.n_kv_heads) if halves else 0)


def _split_layer(name: str, prefix: str) -> tuple[int, str]:
    match = re.match(re.escape(prefix) + r"(\d{1,9})\.(.+)", name)
    return (int(match[1]), match[2]) if match else (-1, "")


def _hf(name: str, cfg: ModelConfig) -> Iterator[Slice]:
    if name == "model.embed_tokens.weight" and cfg.n_image_embeddings:
        end = cfg.vocab_size + cfg.n_image_embeddings
        yield Slice("tok_embeddings", cut=(0, 0, cfg.vocab_size))
        yield Slice("image_embeddings", cut=(0, cfg.vocab_size, end))
        return
    layer, part = _split_layer(name, "model.layers.")
    if layer >= 0 and cfg.cross_attention:
        yield from _apart("hf", layer, part, cfg)
    elif part in ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj", *_HF_STACKED):
        yield from _hf_experts(f"layers.{layer}.", part, cfg)
    else:
        if is_llama4(cfg):
            name = re.sub(r"\.feed_forward\.(gate|up|down)_proj\.", r".mlp.\1_proj.", name)
        yield from _renamed("hf", name, cfg)


# prequantized/experts.py has turned these already, [E, out, in]
_HF_STACKED = {
    "feed_forward.experts.gate_proj.weight": "experts_w1",
    "feed_forward.experts.down_proj.weight": "experts_w2",
    "feed_forward.experts.up_proj.weight": "experts_w3",
}


def _hf_experts(prefix: str, part: str, cfg: ModelConfig) -> Iterator[Slice]:
    """gate_up_proj [E, D, 2F] and down_proj [E, F, D] multiply from the right; ours are [E, out, in]."""
    if cfg.experts is None:
        return
    if part in _HF_STACKED:
        yield Slice(prefix + _HF_STACKED[part])
        return
    width = cfg.experts.expert_ffn_dim
    if part.endswith("gate_up_proj"):
        yield Slice(f"{prefix}experts_w1", cut=(2, 0, width), swap=True)
        yield Slice(f"{prefix}experts_w3", cut=(2, width, 2 * width), swap=True)
    else:
        yield Slice(f"{prefix}experts_w2", swap=True)


def _apart(scheme: Scheme, number: int, part: str, cfg: ModelConfig) -> Iterator[Slice]:
    """Layers of Llama 3.2 Vision, which others number through with the cross-attention ones among them."""
    crossed = [before + i for i, before in enumerate(cfg.cross_attention)]
    if number in crossed:
        ours = {getattr(n, scheme): n.ours for n in CROSS_TABLE}.get(part)
        if ours is not None:
            yield Slice(f"cross_attention_layers.{crossed.index(number)}.{ours}")
        return
    own = number - sum(c < number for c in crossed)
    yield from _renamed(scheme, f"{names.LAYER_PREFIX[scheme]}{own}.{part}", cfg)


def _gguf(name: str, cfg: ModelConfig) -> Iterator[Slice]:
    if name == "token_embd.weight" and cfg.n_image_embeddings:
        yield from _hf("model.embed_tokens.weight", cfg)
        return
    layer, part = _split_layer(name, "blk.")
    if layer >= 0 and cfg.cross_attention:
        yield from _apart("gguf", layer, part, cfg)
    else:
        yield from _renamed("gguf", name, cfg)


def _meta(name: str, cfg: ModelConfig) -> Iterator[Slice]:
    if name == "learnable_embedding.weight":
        yield Slice("image_embeddings", cut=(0, 0, cfg.n_image_embeddings))
        return
    cross, part = _split_layer(name, "cross_attention_layers.")
    if cross >= 0:
        ours = {n.meta: n.ours for n in CROSS_TABLE}.get(part)
        if ours is not None:
            gate = (0, 0, 1) if ours.startswith("gate") else None  # some files repeat the one value
            yield Slice(f"cross_attention_layers.{cross}.{ours}", cut=gate)
        return
    layer, part = _split_layer(name, "layers.")
    special = list(_meta_llama4(f"layers.{layer}.", part, cfg)) if layer >= 0 else []
    yield from special or _renamed("meta", name, cfg)


def _meta_llama4(prefix: str, part: str, cfg: ModelConfig) -> Iterator[Slice]:
    """The fused tensors of Llama 4's files (the load hooks of llama-models, llama4/model.py and moe.py)."""
    queries, keys = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    norms = {
        "attention.wqkv.layer_norm_weight": "attention_norm",
        "feed_forward.mlp.layer_norm_weight": "ffn_norm",
        "feed_forward.norm.weight": "ffn_norm",
    }
    if part in norms:
        yield Slice(prefix + norms[part])
    elif part == "attention.wqkv.weight":
        yield Slice(f"{prefix}wq", cut=(0, 0, queries))
        yield Slice(f"{prefix}wk", cut=(0, queries, queries + keys))
        yield Slice(f"{prefix}wv", cut=(0, queries + keys, queries + 2 * keys))
    elif part == "feed_forward.mlp.fc1_weight":
        yield Slice(f"{prefix}w1", cut=(0, 0, cfg.ffn_dim))
        yield Slice(f"{prefix}w3", cut=(0, cfg.ffn_dim, 2 * cfg.ffn_dim))
    elif part == "feed_forward.mlp.fc2_weight":
        yield Slice(f"{prefix}w2")
    elif part == "feed_forward.router_DE":
        yield Slice(f"{prefix}router", swap=True)
    elif cfg.experts is not None and part in _META_EXPERTS_FP8:
        ours, shape = _META_EXPERTS_FP8[part], (cfg.experts.expert_ffn_dim, cfg.dim)
        yield Slice(prefix + ours, view=(cfg.experts.n_experts, *(shape[::-1] if ours[-1] == "2" else shape)))
    elif cfg.experts is not None and part in _META_EXPERTS:
        yield Slice(prefix + _META_EXPERTS[part], view=_expert_view(part, cfg), swap=True)


_META_EXPERTS = {
    "feed_forward.experts.moe_w_in_eD_F": "experts_w1",
    "feed_forward.experts.moe_w_out_eF_D": "experts_w2",
    "feed_forward.experts.moe_w_swiglu_eD_F": "experts_w3",
}


# prequantized/meta_fp8.py has turned these already, [E * out, in]
_META_EXPERTS_FP8 = {f"feed_forward.experts.{w}.weight": f"experts_{w}" for w in ("w1", "w2", "w3")}


def _expert_view(part: str, cfg: ModelConfig) -> tuple[int, ...]:
    """[E * D, F] or [E * F, D], one expert after the other -> [E, in, out]."""
    assert cfg.experts is not None
    n, width = cfg.experts.n_experts, cfg.experts.expert_ffn_dim
    return (n, width, cfg.dim) if part.endswith("eF_D") else (n, cfg.dim, width)


_COLUMN: dict[Scheme, int] = {"meta": 0, "hf": 1, "gguf": 2}


def _vision(scheme: Scheme, name: str, cfg: ModelConfig) -> tuple[Slice, ...]:
    """A tensor of the image encoder whose prefix is ours already; none for any other."""
    if cfg.vision is None:
        return ()
    column = _COLUMN[scheme]
    mllama = cfg.vision if isinstance(cfg.vision, Llama32VisionConfig) else None
    for ours, foreign in (LLAMA4_ENDS if mllama is None else LLAMA32_ENDS).items():
        if name == _without_prefix(scheme, foreign[column]):
            return (Slice(ours),)
    match = re.fullmatch(r"vision\.((?:global_)?layers)\.(\d{1,9})\.(.+)", name)
    if match:
        part = next((ours for ours, foreign in LAYER.items() if foreign[column] == match[3]), None)
        return (Slice(f"vision.{match[1]}.{int(match[2])}.{part}"),) if part else ()
    foreign_name = name.removeprefix("vision.")
    if scheme == "meta" and mllama is not None and foreign_name in _BY_TILE:
        return (Slice(f"vision.{_BY_TILE[foreign_name]}", tiles=mllama),)
    top = LLAMA4_TOP if mllama is None else LLAMA32_TOP
    found = next((ours for ours, foreign in top.items() if foreign[column] == foreign_name), None)
    if found is None or foreign_name == name:
        return ()
    flat = (cfg.vision.dim, 3 * cfg.vision.patch_size**2)
    return (Slice(f"vision.{found}", view=flat if found == "conv1" else ()),)


_BY_TILE = {
    "gated_positional_embedding": "gated_positional_embedding",
    "pre_tile_pos_embed.embedding": "pre_tile_pos_embed",
    "post_tile_pos_embed.embedding": "post_tile_pos_embed",
}


def _by_grid(table: NDArray[Any], cfg: Llama32VisionConfig) -> NDArray[Any]:
    """[N, N, T or 1, D] by row and column of a tile -> [A, N * T * D], row 0 and unused tiles zero.

    A grid of h rows of w tiles numbers them row by row (llama-models, TilePositionEmbedding).
    """
    out = np.zeros((len(cfg.aspect_ratios) + 1, cfg.max_tiles, *table.shape[2:]), table.dtype)
    for i, (h, w) in enumerate(cfg.aspect_ratios, start=1):
        out[i, : h * w] = table[:h, :w].reshape(h * w, *table.shape[2:])
    return out.reshape(len(out), -1)


def _by_tile(grids: NDArray[Any], cfg: Llama32VisionConfig, shape: tuple[int, ...]) -> NDArray[Any]:
    """The inverse of `_by_grid`: a table of `shape` [N, N, T or 1, D], zero where no grid uses it.

    Raises Unsupported where two grids have different values for one tile, or an unused one has any.
    """
    rows = grids.reshape(len(grids), cfg.max_tiles, *shape[2:])
    table = np.zeros(shape, grids.dtype)
    for i, (h, w) in enumerate(cfg.aspect_ratios, start=1):
        table[:h, :w] = rows[i, : h * w].reshape(h, w, *shape[2:])
    if not np.array_equal(_by_grid(table, cfg), grids):
        raise Unsupported(
            "the image encoder's embeddings of tiles differ between grids of tiles, and Meta's table has one "
            "for each row and column; convert to hf or gguf"
        )
    return table
