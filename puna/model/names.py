"""Names of tensors: ours, Meta's, Hugging Face's and GGUF's, and the two orders of query and key rows.

Ours are Meta's without the redundant parts: `tok_embeddings`, `layers.{i}.wq`, `norm`, `output`. The fields
of block.Weights and block.LayerWeights have the same names. Foreign names exist in this file only.

`from_*` turn a foreign name into ours; None is a tensor that holds nothing new (a stored rotary table), and a
name that no Llama text decoder has is refused with `Unsupported`. `to_*` go the other way.

Shapes: D dim, V vocabulary, H query heads, K key/value heads, C head_dim, F ffn_dim, R any rows, X any width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from puna.core import BadFile, Unsupported
from puna.model.block import LayerWeights, Weights
from puna.model.config import ModelConfig


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

# Hugging Face stores the rows of a head as (all first of pairs, all second of pairs); everyone else pair by
# pair.
PERMUTED = ("wq", "wk")

Scheme = Literal["meta", "hf", "gguf"]
_LAYER_PREFIX: dict[Scheme, str] = {"meta": "layers.", "hf": "model.layers.", "gguf": "blk."}
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
_TO_OURS: Lookup = {s: {getattr(n, s): n.ours for n in TABLE if getattr(n, s)} for s in _LAYER_PREFIX}
_LAYER_TO_OURS: Lookup = {s: {getattr(n, s): n.ours for n in LAYER_TABLE} for s in _LAYER_PREFIX}
_FROM_OURS: Lookup = {s: {ours: stem for stem, ours in names.items()} for s, names in _TO_OURS.items()}
_LAYER_FROM_OURS: Lookup = {
    s: {ours: stem for stem, ours in names.items()} for s, names in _LAYER_TO_OURS.items()
}


def _from_foreign(scheme: Scheme, name: str) -> str | None:
    stem = name.removesuffix(".weight")
    ours = _TO_OURS[scheme].get(stem)
    if ours is None and stem.startswith(_LAYER_PREFIX[scheme]):
        index, _, rest = stem.removeprefix(_LAYER_PREFIX[scheme]).partition(".")
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
        stem = f"{_LAYER_PREFIX[scheme]}{index}.{_LAYER_FROM_OURS[scheme][part]}"
    if stem is None:
        raise Unsupported(f"a {scheme} checkpoint has no place for the tensor {name!r}")
    return stem + ".weight"


def shapes(cfg: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Our names with row-major shapes of every tensor a checkpoint of `cfg` must hold, in the order of use.

    Lazy, so that an absurd number of layers costs nothing until it is walked.
    """
    queries, keys = cfg.n_heads * cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
    layer = {
        "attention_norm": (cfg.dim,),
        "wq": (queries, cfg.dim),
        "wk": (keys, cfg.dim),
        "wv": (keys, cfg.dim),
        "wo": (cfg.dim, queries),
        "ffn_norm": (cfg.dim,),
        "w1": (cfg.ffn_dim, cfg.dim),
        "w2": (cfg.dim, cfg.ffn_dim),
        "w3": (cfg.ffn_dim, cfg.dim),
    }
    yield "tok_embeddings", (cfg.vocab_size, cfg.dim)
    for i in range(cfg.n_layers):
        for part, shape in layer.items():
            yield f"layers.{i}.{part}", shape
    yield "norm", (cfg.dim,)
    if not cfg.tied:
        yield "output", (cfg.vocab_size, cfg.dim)


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
    parts = [n.ours for n in LAYER_TABLE]
    layers = (
        LayerWeights(**{part: tensors[f"layers.{i}.{part}"] for part in parts}) for i in range(cfg.n_layers)
    )
    embeddings = tensors["tok_embeddings"]
    return Weights(
        tok_embeddings=embeddings,
        layers=tuple(layers),
        norm=tensors["norm"],
        output=embeddings if cfg.tied else tensors["output"],
        rope=rope,
    )


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
