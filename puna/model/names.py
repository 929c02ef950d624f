"""Names of tensors: ours, Meta's, Hugging Face's and GGUF's, and the two orders of query and key rows.

Ours are Meta's without the redundant parts: `tok_embeddings`, `layers.{i}.wq`, `norm`, `output`. The fields
of block.Weights and block.LayerWeights have the same names. Foreign names exist in this file only.

`from_*` turn a foreign name into ours; None is a tensor that holds nothing new (a stored rotary table), and a
name that no Llama text decoder has is refused with `Unsupported`. `to_*` go the other way. Both know tensors
that are the same in every scheme; incoming.py also knows those that others fuse, transpose or number apart.

Shapes: D dim, V vocabulary, H query heads, K key/value heads, C head_dim, F ffn_dim, E experts, R any rows,
X any width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.model.block import Adapted, CrossLayerWeights, ExpertWeights, LayerWeights, Weights
from puna.model.config import ModelConfig
from puna.model.names_vision import vision_shapes


class Names(NamedTuple):
    """One tensor in every scheme, without the `.weight` of all foreign names; "" where it has none."""

    ours: str
    meta: str
    hf: str
    gguf: str


TABLE = (
    Names("tok_embeddings", "tok_embeddings", "model.embed_tokens", "token_embd"),
    Names("norm", "norm", "model.norm", "output_norm"),
    Names("output", "output", "lm_head", "output"),
    Names("rope_factors", "", "", "rope_freqs"),
    Names("rope_factors_short", "", "", "rope_factors_short"),
    Names("rope_factors_long", "", "", "rope_factors_long"),
)

LAYER_TABLE = (
    Names("attention_norm", "attention_norm", "input_layernorm", "attn_norm"),
    Names("wq", "attention.wq", "self_attn.q_proj", "attn_q"),
    Names("wk", "attention.wk", "self_attn.k_proj", "attn_k"),
    Names("wv", "attention.wv", "self_attn.v_proj", "attn_v"),
    Names("wo", "attention.wo", "self_attn.o_proj", "attn_output"),
    Names("ffn_norm", "ffn_norm", "post_attention_layernorm", "ffn_norm"),
    Names("w1", "feed_forward.w1", "mlp.gate_proj", "ffn_gate"),
    Names("w2", "feed_forward.w2", "mlp.down_proj", "ffn_down"),
    Names("w3", "feed_forward.w3", "mlp.up_proj", "ffn_up"),
)

ADAPTED = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")  # matrices that have an adapter where there is any


def adapter_names(name: str) -> tuple[str, str]:
    """Of the two matrices of an adapter: down and up."""
    return f"{name}_down", f"{name}_up"


# Of Meta's releases made with QLoRA.
ADAPTER_TABLE = tuple(
    Names(ours, f"{name.meta}.adaptor.{part}", "", "")
    for name in LAYER_TABLE
    if name.ours in ADAPTED
    for ours, part in zip(adapter_names(name.ours), "AB", strict=True)
)

# In place of w1, w2, w3 in layers with experts. Meta and Hugging Face store the experts fused or transposed.
EXPERT_TABLE = (
    Names("router", "", "feed_forward.router", "ffn_gate_inp"),
    Names("experts_w1", "", "", "ffn_gate_exps"),
    Names("experts_w2", "", "", "ffn_down_exps"),
    Names("experts_w3", "", "", "ffn_up_exps"),
    Names(
        "shared_w1",
        "feed_forward.w_in_shared_FD",
        "feed_forward.shared_expert.gate_proj",
        "ffn_gate_shexp",
    ),
    Names(
        "shared_w2",
        "feed_forward.w_out_shared_DF",
        "feed_forward.shared_expert.down_proj",
        "ffn_down_shexp",
    ),
    Names(
        "shared_w3",
        "feed_forward.w_swiglu_FD",
        "feed_forward.shared_expert.up_proj",
        "ffn_up_shexp",
    ),
)

# Parts of `cross_attention_layers.{i}`; foreign names with their ending. GGUF: Ollama's.
CROSS_TABLE = (
    Names("attention_norm", "attention_norm.weight", "input_layernorm.weight", "attn_norm.weight"),
    Names("wq", "attention.wq.weight", "cross_attn.q_proj.weight", "cross_attn_q_proj.weight"),
    Names("wk", "attention.wk.weight", "cross_attn.k_proj.weight", "cross_attn_k_proj.weight"),
    Names("wv", "attention.wv.weight", "cross_attn.v_proj.weight", "cross_attn_v_proj.weight"),
    Names("wo", "attention.wo.weight", "cross_attn.o_proj.weight", "cross_attn_o_proj.weight"),
    Names("q_norm", "attention.q_norm.weight", "cross_attn.q_norm.weight", "cross_attn_q_norm.weight"),
    Names("k_norm", "attention.k_norm.weight", "cross_attn.k_norm.weight", "cross_attn_k_norm.weight"),
    Names("gate_attn", "gate_attn", "cross_attn_attn_gate", "cross_attn_attn_gate"),
    Names("ffn_norm", "ffn_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight"),
    Names("w1", "feed_forward.w1.weight", "mlp.gate_proj.weight", "ffn_gate.weight"),
    Names("w2", "feed_forward.w2.weight", "mlp.down_proj.weight", "ffn_down.weight"),
    Names("w3", "feed_forward.w3.weight", "mlp.up_proj.weight", "ffn_up.weight"),
    Names("gate_ffn", "gate_ffwd", "cross_attn_mlp_gate", "cross_attn_mlp_gate"),
)

# Hugging Face stores the rows of a head as (all first of pairs, all second of pairs); everyone else pair by
# pair.
PERMUTED = ("wq", "wk")

Scheme = Literal["meta", "hf", "gguf"]
LAYER_PREFIX: dict[Scheme, str] = {"meta": "layers.", "hf": "model.layers.", "gguf": "blk."}
# rotary tables that older files carry: computed from the configuration, so not read
_DERIVED = re.compile(
    r"rope\.freqs|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|blk\.\d+\.attn_rot_embd\.weight"
)


def from_meta(name: str) -> str | None:
    return _from_foreign("meta", name)


def from_hf(name: str) -> str | None:
    return _from_foreign("hf", name)


def from_gguf(name: str) -> str | None:
    return _from_foreign("gguf", name)


def to_meta(name: str) -> str:
    return _to_foreign("meta", name)


def to_hf(name: str) -> str:
    return _to_foreign("hf", name)


def to_gguf(name: str) -> str:
    return _to_foreign("gguf", name)


Lookup = dict[Scheme, dict[str, str]]
_TO_OURS: Lookup = {s: {getattr(n, s): n.ours for n in TABLE if getattr(n, s)} for s in LAYER_PREFIX}
_LAYER_TO_OURS: Lookup = {
    s: {getattr(n, s): n.ours for n in (*LAYER_TABLE, *ADAPTER_TABLE, *EXPERT_TABLE) if getattr(n, s)}
    for s in LAYER_PREFIX
}
_FROM_OURS: Lookup = {s: {ours: stem for stem, ours in names.items()} for s, names in _TO_OURS.items()}
_LAYER_FROM_OURS: Lookup = {
    s: {ours: stem for stem, ours in names.items()} for s, names in _LAYER_TO_OURS.items()
}


def _from_foreign(scheme: Scheme, name: str) -> str | None:
    stem = name.removesuffix(".weight")
    ours = _TO_OURS[scheme].get(stem)
    if ours is None and stem.startswith(LAYER_PREFIX[scheme]):
        index, _, rest = stem.removeprefix(LAYER_PREFIX[scheme]).partition(".")
        part = _LAYER_TO_OURS[scheme].get(rest)
        if part is not None and re.fullmatch(r"0|[1-9][0-9]{0,9}", index):
            ours = f"layers.{index}.{part}"
    if ours is not None and stem != name:
        return ours
    if _DERIVED.fullmatch(name):
        return None
    raise Unsupported(
        f"tensor {name!r} is not part of a Llama text decoder; "
        "Puna would have to leave it out, so it does not run this checkpoint"
    )


def _to_foreign(scheme: Scheme, name: str) -> str:
    stem = _FROM_OURS[scheme].get(name)
    if stem is None and name.startswith("layers."):
        index, _, part = name.removeprefix("layers.").partition(".")
        foreign = _LAYER_FROM_OURS[scheme].get(part)
        stem = foreign and f"{LAYER_PREFIX[scheme]}{index}.{foreign}"
    if stem is None:
        raise Unsupported(f"a {scheme} checkpoint has no place for the tensor {name!r}")
    return stem + ".weight"


def shapes(cfg: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Our names with row-major shapes of every tensor a checkpoint of `cfg` must hold, in the order of use.

    Lazy, so that an absurd number of layers costs nothing until it is walked.
    """
    yield "tok_embeddings", (cfg.vocab_size, cfg.dim)
    if cfg.n_image_embeddings:
        yield "image_embeddings", (cfg.n_image_embeddings, cfg.dim)
    attention, dense, experts = _attention_shapes(cfg), _dense_shapes(cfg), _expert_shapes(cfg)
    dense |= _adapter_shapes(cfg)
    cross = 0
    for i in range(cfg.n_layers):
        if cross < len(cfg.cross_attention) and cfg.cross_attention[cross] == i:
            for part, shape in _cross_shapes(cfg).items():
                yield f"cross_attention_layers.{cross}.{part}", shape
            cross += 1
        for part, shape in (attention | (experts if cfg.has_experts(i) else dense)).items():
            yield f"layers.{i}.{part}", shape
    yield "norm", (cfg.dim,)
    if not cfg.tied:
        yield "output", (cfg.vocab_size, cfg.dim)
    if cfg.vision is not None:
        yield from vision_shapes(cfg.vision, cfg.dim)


Shapes = dict[str, tuple[int, ...]]


def _attention_shapes(cfg: ModelConfig) -> Shapes:
    queries, keys = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    return {
        "attention_norm": (cfg.dim,),
        "wq": (queries, cfg.dim),
        "wk": (keys, cfg.dim),
        "wv": (keys, cfg.dim),
        "wo": (cfg.dim, queries),
        "ffn_norm": (cfg.dim,),
    }


def _adapter_shapes(cfg: ModelConfig) -> Shapes:
    shapes: Shapes = {}
    if cfg.lora_rank:
        plain = _attention_shapes(cfg) | _dense_shapes(cfg)
        for part in ADAPTED:
            down, up = adapter_names(part)
            n_out, n_in = plain[part]
            shapes |= {down: (cfg.lora_rank, n_in), up: (n_out, cfg.lora_rank)}
    return shapes


_ADAPTABLE = (*ADAPTED, "shared_w1", "shared_w2", "shared_w3")


def adaptable_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The matrices that adapters of a loaded model may change: of layers, neither experts nor routers."""
    return {
        name: shape
        for name, shape in shapes(cfg)
        if name.startswith("layers.") and name.rpartition(".")[2] in _ADAPTABLE
    }


def _dense_shapes(cfg: ModelConfig) -> Shapes:
    return {"w1": (cfg.ffn_dim, cfg.dim), "w2": (cfg.dim, cfg.ffn_dim), "w3": (cfg.ffn_dim, cfg.dim)}


def _cross_shapes(cfg: ModelConfig) -> Shapes:
    norms = {"q_norm": (cfg.head_dim,), "k_norm": (cfg.head_dim,), "gate_attn": (1,), "gate_ffn": (1,)}
    return _attention_shapes(cfg) | norms | _dense_shapes(cfg)


def _expert_shapes(cfg: ModelConfig) -> Shapes:
    if cfg.experts is None:
        return {}
    e = cfg.experts
    shapes: Shapes = {
        "router": (e.n_experts, cfg.dim),
        "experts_w1": (e.n_experts, e.expert_ffn_dim, cfg.dim),
        "experts_w2": (e.n_experts, cfg.dim, e.expert_ffn_dim),
        "experts_w3": (e.n_experts, e.expert_ffn_dim, cfg.dim),
    }
    if e.shared_ffn_dim:
        shapes["shared_w1"] = (e.shared_ffn_dim, cfg.dim)
        shapes["shared_w2"] = (cfg.dim, e.shared_ffn_dim)
        shapes["shared_w3"] = (e.shared_ffn_dim, cfg.dim)
    return shapes


def check_shapes(cfg: ModelConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `BadFile` unless `found` (our names) has every tensor of `cfg` in its shape, and no other."""
    for name, shape in shapes(cfg):
        if name not in found:
            raise BadFile(f"the checkpoint lacks the tensor {name!r} of shape {shape}; download it again")
        if tuple(found[name]) != shape:
            raise BadFile(
                f"tensor {name!r} must have shape {shape} by the checkpoint's own configuration, "
                f"found {tuple(found[name])}; convert or download it again"
            )
    optional = {"rope_factors", "rope_factors_short", "rope_factors_long"}
    if cfg.tied:
        optional.add("output")  # some tied checkpoints store the table twice
    extra = set(found) - {name for name, _ in shapes(cfg)} - optional
    if extra:
        raise BadFile(
            f"the checkpoint holds {min(extra)!r}, and its own configuration describes no such tensor; "
            "convert or download it again"
        )


def assemble(cfg: ModelConfig, tensors: Mapping[str, Any], rope: Any) -> Weights:
    """Weights of block.py from any mapping of our names (arrays, packed matrices, numbers of buffers).

    The mapping must hold every name of `shapes(cfg)`; `rope` is the RopeTable, or what stands for it.
    """
    layers = (_layer(cfg, tensors, i) for i in range(cfg.n_layers))
    crosses = (_cross_layer(cfg, tensors, i) for i in range(len(cfg.cross_attention)))
    embeddings = tensors["tok_embeddings"]
    vision = None
    if cfg.vision is not None:
        from puna.model.vision import assemble_vision  # most models see nothing

        vision = assemble_vision(cfg.vision, cfg.dim, tensors)
    return Weights(
        tok_embeddings=embeddings,
        layers=tuple(layers),
        norm=tensors["norm"],
        output=embeddings if cfg.tied else tensors["output"],
        rope=rope,
        image_embeddings=tensors["image_embeddings"] if cfg.n_image_embeddings else None,
        cross_layers=tuple(crosses),
        vision=vision,
    )


def _cross_layer(cfg: ModelConfig, tensors: Mapping[str, Any], i: int) -> CrossLayerWeights:
    return CrossLayerWeights(
        **{part: tensors[f"cross_attention_layers.{i}.{part}"] for part in _cross_shapes(cfg)}
    )


def _layer(cfg: ModelConfig, tensors: Mapping[str, Any], i: int) -> LayerWeights:
    attention = {part: _matrix(cfg, tensors, f"layers.{i}.{part}") for part in _attention_shapes(cfg)}
    if not cfg.has_experts(i):
        dense = {part: _matrix(cfg, tensors, f"layers.{i}.{part}") for part in _dense_shapes(cfg)}
        return LayerWeights(**attention, **dense)
    experts = {part: tensors[f"layers.{i}.{part}"] for part in _expert_shapes(cfg)}
    return LayerWeights(**attention, experts=ExpertWeights(**experts))


def _matrix(cfg: ModelConfig, tensors: Mapping[str, Any], name: str) -> Any:
    """A tensor of a layer, with its adapter where it has one."""
    if not cfg.lora_rank or name.rpartition(".")[2] not in ADAPTED:
        return tensors[name]
    return Adapted(tensors[name], *(tensors[part] for part in adapter_names(name)))


Scalar = TypeVar("Scalar", bound=np.generic)


def permute(rows_RX: NDArray[Scalar], n_heads: int) -> NDArray[Scalar]:
    """Rows of wq or wk from pair by pair (Meta, GGUF) to Hugging Face's halves, head by head -> a new [R, X].

    Only rows move, so X may be columns of any type or the raw bytes of quantized rows. R = n_heads * C.
    """
    return _swap(rows_RX, n_heads, (-1, 2))


def unpermute(rows_RX: NDArray[Scalar], n_heads: int) -> NDArray[Scalar]:
    """The inverse of `permute`: from Hugging Face's halves to pair by pair -> a new [R, X]."""
    return _swap(rows_RX, n_heads, (2, -1))


def _swap(rows_RX: NDArray[Scalar], n_heads: int, split: tuple[int, int]) -> NDArray[Scalar]:
    """Split the rows of each head in two axes and exchange them."""
    n_rows, width = rows_RX.shape
    assert n_rows % (2 * n_heads) == 0, (rows_RX.shape, n_heads)
    return rows_RX.reshape(n_heads, *split, width).swapaxes(1, 2).reshape(n_rows, width)
