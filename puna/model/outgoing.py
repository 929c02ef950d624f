"""Our tensors as others store them: the foreign tensors of a checkpoint, and what each is made of.

Names and shapes are here; how parts lie in a foreign tensor is incoming.py's knowledge, read the other way
round. So what is written is what `incoming` reads back.

Shapes: D dim, V vocabulary, F expert_ffn_dim, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import Unsupported
from puna.model import names
from puna.model.config import ModelConfig
from puna.model.incoming import Slice, incoming, is_llama4
from puna.model.names import CROSS_TABLE, LAYER_PREFIX, Scheme, shapes
from puna.model.names_vision import LAYER, LLAMA4_ENDS, LLAMA4_TOP, LLAMA32_ENDS, LLAMA32_TOP
from puna.model.vision_config import Llama32VisionConfig

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A tensor of a foreign checkpoint: `parts` say where in it ours are."""

    name: str
    shape: Shape
    parts: tuple[Slice, ...]

    @property
    def is_ours(self) -> bool:
        """Whether it is one of ours as it is, but for its name and axes."""
        (first, *more) = self.parts
        return not more and replace(first, view=()) == Slice(first.ours)

    def of(self, ours: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The tensor from ours by name. Raises Unsupported where the foreign form cannot hold them."""
        first = ours[self.parts[0].ours]
        whole = np.empty(self.shape, first.dtype)
        for part in self.parts:
            part.into(whole, ours[part.ours])
        return whole


def outgoing(scheme: Scheme, cfg: ModelConfig) -> Iterator[Foreign]:
    """All tensors of a checkpoint of `cfg` in another's layout, in the order of names.shapes.

    Each tensor of ours is part of exactly one. Meta's are those of its released files: Llama 4's fused ones.
    """
    done: set[str] = set()
    for ours, shape in shapes(cfg):
        if ours in done:
            continue
        name, foreign_shape = _foreign(scheme, ours, shape, cfg)
        parts = incoming(scheme, name, cfg)
        done |= {part.ours for part in parts}
        yield Foreign(name, foreign_shape, parts)


def _foreign(scheme: Scheme, ours: str, shape: Shape, cfg: ModelConfig) -> tuple[str, Shape]:
    """Name and shape of the foreign tensor that holds one of ours."""
    if ours.startswith("vision"):
        return _vision(scheme, ours, shape, cfg)
    if scheme == "gguf":
        return _text_gguf(ours, shape, cfg)
    name, found = (_text_hf if scheme == "hf" else _text_meta)(ours, shape, cfg)
    if scheme == "meta":
        return ("text_model." if cfg.cross_attention else "") + name, found
    return ("" if cfg.vision is None else "language_model.") + name, found


def _with_image_rows(shape: Shape, cfg: ModelConfig) -> Shape:
    return (shape[0] + cfg.n_image_embeddings, *shape[1:])


def _text_gguf(ours: str, shape: Shape, cfg: ModelConfig) -> tuple[str, Shape]:
    if ours == "tok_embeddings":
        return names.to_gguf(ours), _with_image_rows(shape, cfg)
    return _numbered("gguf", ours, cfg) or names.to_gguf(ours), shape


def _text_hf(ours: str, shape: Shape, cfg: ModelConfig) -> tuple[str, Shape]:
    if ours == "tok_embeddings":
        return names.to_hf(ours), _with_image_rows(shape, cfg)
    numbered = _numbered("hf", ours, cfg)
    if numbered is not None:
        return numbered, shape
    stem, _, part = ours.rpartition(".")
    prefix = f"model.{stem}.feed_forward."
    if part in ("experts_w1", "experts_w3"):
        experts, width, dim = shape
        return f"{prefix}experts.gate_up_proj", (experts, dim, 2 * width)
    if part == "experts_w2":
        return f"{prefix}experts.down_proj", (shape[0], shape[2], shape[1])
    name = names.to_hf(ours)
    return (name.replace(".mlp.", ".feed_forward.") if is_llama4(cfg) else name), shape


def _numbered(scheme: Scheme, ours: str, cfg: ModelConfig) -> str | None:
    """The name of a layer's tensor where cross-attention layers are numbered among the others."""
    kind, _, rest = ours.partition(".")
    if not cfg.cross_attention or not rest:
        return None
    index, _, part = rest.partition(".")
    i = int(index)
    if kind == "cross_attention_layers":
        foreign = next(getattr(n, scheme) for n in CROSS_TABLE if n.ours == part)
        return f"{LAYER_PREFIX[scheme]}{cfg.cross_attention[i] + i}.{foreign}"
    moved = i + sum(before <= i for before in cfg.cross_attention)
    to_foreign = names.to_hf if scheme == "hf" else names.to_gguf
    return to_foreign(f"layers.{moved}.{part}")


def _text_meta(ours: str, shape: Shape, cfg: ModelConfig) -> tuple[str, Shape]:
    if ours == "image_embeddings":
        return "learnable_embedding.weight", shape
    kind, _, rest = ours.partition(".")
    index, _, part = rest.partition(".")
    if kind == "cross_attention_layers":
        foreign = next(n.meta for n in CROSS_TABLE if n.ours == part)
        return f"cross_attention_layers.{index}.{foreign}", shape
    if kind == "layers" and is_llama4(cfg):
        special = _meta_llama4(int(index), part, shape, cfg)
        if special is not None:
            return f"layers.{index}.{special[0]}", special[1]
    return names.to_meta(ours), shape


def _meta_llama4(layer: int, part: str, shape: Shape, cfg: ModelConfig) -> tuple[str, Shape] | None:
    """What is fused, turned or named otherwise in Llama 4's files."""
    if part in ("wq", "wk", "wv"):
        return "attention.wqkv.weight", ((cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim, cfg.dim)
    if part in ("w1", "w3"):
        return "feed_forward.mlp.fc1_weight", (2 * cfg.ffn_dim, cfg.dim)
    if part == "router":
        return "feed_forward.router_DE", shape[::-1]
    experts = {
        "experts_w1": "moe_w_in_eD_F",
        "experts_w2": "moe_w_out_eF_D",
        "experts_w3": "moe_w_swiglu_eD_F",
    }
    if part in experts:
        n, outputs, inputs = shape
        return f"feed_forward.experts.{experts[part]}", (n * inputs, outputs)
    norm = "feed_forward.norm.weight" if cfg.has_experts(layer) else "feed_forward.mlp.layer_norm_weight"
    plain = {
        "w2": "feed_forward.mlp.fc2_weight",
        "attention_norm": "attention.wqkv.layer_norm_weight",
        "ffn_norm": norm,
    }
    return (plain[part], shape) if part in plain else None


_VISION = {  # before the names of names_vision.py: of the layers, the global layers, everything else
    "gguf": ("v.blk.", "v.global.blk.", "v."),
    "meta llama4": (
        "vision_embeddings.vision_encoder.transformer.resblocks.",
        "",
        "vision_embeddings.vision_encoder.",
    ),
    "meta mllama": (
        "vision_model.vision_encoder.transformer.resblocks.",
        "vision_model.vision_encoder.global_transformer.resblocks.",
        "vision_model.vision_encoder.",
    ),
    "hf llama4": ("vision_model.model.layers.", "", "vision_model."),
    "hf mllama": (
        "vision_model.transformer.layers.",
        "vision_model.global_transformer.layers.",
        "vision_model.",
    ),
}


def _vision(scheme: Scheme, ours: str, shape: Shape, cfg: ModelConfig) -> tuple[str, Shape]:
    vision = cfg.vision
    assert vision is not None
    column = ("meta", "hf", "gguf").index(scheme)
    is_mllama = isinstance(vision, Llama32VisionConfig)
    ends = LLAMA32_ENDS if is_mllama else LLAMA4_ENDS
    if ours in ends:
        return ends[ours][column], shape
    layers, global_layers, top = _VISION[
        scheme if scheme == "gguf" else f"{scheme} {'mllama' if is_mllama else 'llama4'}"
    ]
    part = ours.removeprefix("vision.")
    for kind, prefix in (("layers.", layers), ("global_layers.", global_layers)):
        if part.startswith(kind):
            index, _, rest = part.removeprefix(kind).partition(".")
            return f"{prefix}{index}.{LAYER[rest][column]}", shape
    if isinstance(vision, Llama32VisionConfig):
        if scheme == "meta" and part in _TABLES:
            per_tile = shape[1] // vision.max_tiles // vision.dim
            return top + _TABLES[part], (vision.max_tiles, vision.max_tiles, per_tile, vision.dim)
        if part == "conv1" and scheme != "meta":  # a convolution's kernel
            shape = (vision.dim, 3, vision.patch_size, vision.patch_size)
    name = (LLAMA32_TOP if is_mllama else LLAMA4_TOP)[part][column]
    if not name:
        raise Unsupported(f"a {scheme} checkpoint has no place for the tensor {ours!r}")
    return top + name, shape


_TABLES = {
    "gated_positional_embedding": "gated_positional_embedding",
    "pre_tile_pos_embed": "pre_tile_pos_embed.embedding",
    "post_tile_pos_embed": "post_tile_pos_embed.embedding",
}
