"""What a Llama computes. The whole text decoder, written once over the ops of ops/table.py.

`Weights` mirrors Meta's checkpoint: an implementation of the ops decides what an entry is (an array, a packed
matrix, a name while recording). Executors may fuse; the golden vectors hold them to this definition.

Shapes: T tokens, D dim, H heads, K key/value heads, C head_dim, F ffn_dim, E experts, V vocabulary, M
embeddings behind it, R wanted rows, A rank of adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from puna.model.config import ModelConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    router: Any  # [E, D]
    experts_w1: Any  # [E, F, D] gates
    experts_w2: Any  # [E, D, F] downs
    experts_w3: Any  # [E, F, D] ups
    shared_w1: Any = None  # [F, D], and so on: the expert that sees every token, where there is one
    shared_w2: Any = None
    shared_w3: Any = None


@dataclass(frozen=True, slots=True)
class Adapted:
    """A matrix with a low-rank adapter beside it: w x + up (down x) (Hu et al. 2021, arXiv 2106.09685)."""

    w: Any  # [E, D]
    down: Any  # [A, D], A being the rank
    up: Any  # [E, A], its scale included


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Any matrix may be `Adapted`."""

    attention_norm: Any  # [D]
    wq: Any  # [H*C, D], rows of a head in interleaved-pair order (Meta's)
    wk: Any  # [K*C, D], likewise
    wv: Any  # [K*C, D]
    wo: Any  # [D, H*C]
    ffn_norm: Any  # [D]
    w1: Any = None  # [F, D] gate; these three are absent where there are experts
    w2: Any = None  # [D, F] down
    w3: Any = None  # [F, D] up
    experts: ExpertWeights | None = None


@dataclass(frozen=True, slots=True)
class CrossLayerWeights:
    attention_norm: Any  # [D]
    wq: Any  # [H*C, D]
    wk: Any  # [K*C, D], of images, as wv
    wv: Any  # [K*C, D]
    wo: Any  # [D, H*C]
    q_norm: Any  # [C]
    k_norm: Any  # [C]
    gate_attn: Any  # [1], before tanh, as gate_ffn
    ffn_norm: Any  # [D]
    w1: Any  # [F, D]
    w2: Any  # [D, F]
    w3: Any  # [F, D]
    gate_ffn: Any  # [1]


@dataclass(frozen=True, slots=True)
class Weights:
    tok_embeddings: Any  # [V, D]
    layers: tuple[LayerWeights, ...]
    norm: Any  # [D]
    output: Any  # [V, D]; the same object as tok_embeddings where tied
    rope: Any  # rope.RopeTable
    image_embeddings: Any = None  # [M, D] of the tokens behind the vocabulary
    cross_layers: tuple[CrossLayerWeights, ...] = ()  # before the layers of cfg.cross_attention
    vision: Any = None  # vision.VisionWeights


def decoder(ops: Any, cfg: ModelConfig, w: Weights, with_images: bool = False) -> Any:
    """Logits [R, V] of the rows that the step wants."""
    return ops.linear(hidden(ops, cfg, w, with_images), w.output)


def hidden(ops: Any, cfg: ModelConfig, w: Weights, with_images: bool = False) -> Any:
    """What logits are made of: the last layer's outputs after the final norm [R, D].

    A step in which no token sees an image leaves cross-attention layers out: they would add zero.
    """
    x_TD = ops.embed(w.tok_embeddings, w.image_embeddings)
    crosses = dict(zip(cfg.cross_attention, w.cross_layers, strict=True)) if with_images else {}
    for i, layer in enumerate(w.layers):
        if i in crosses:
            x_TD = cross_layer(ops, cfg, crosses[i], cfg.cross_attention.index(i), x_TD)
        x_TD = decoder_layer(ops, cfg, layer, i, w.rope, x_TD)
    x_RD = ops.select(x_TD)
    return ops.rms_norm(x_RD, w.norm, cfg.norm_eps)


def decoder_layer(ops: Any, cfg: ModelConfig, layer: LayerWeights, i: int, rope: Any, x_TD: Any) -> Any:
    """Self-attention and a feed-forward network, each added to what it was given -> [T, D]."""
    h_TD = ops.rms_norm(x_TD, layer.attention_norm, cfg.norm_eps)
    x_TD = ops.add(x_TD, attention(ops, cfg, layer, i, rope, h_TD))
    h_TD = ops.rms_norm(x_TD, layer.ffn_norm, cfg.norm_eps)
    return ops.add(x_TD, feed_forward(ops, cfg, layer, h_TD))


def attention(ops: Any, cfg: ModelConfig, layer: LayerWeights, i: int, rope: Any, h_TD: Any) -> Any:
    """Grouped-query causal self-attention -> [T, D].

    With rotary positions; in Llama 4 over the token's own chunk, and every few layers over all positions
    without rotating, queries then growing with their position (llama-models, llama4/model.py).
    """
    q_THC, k_TKC, v_TKC = (project(ops, h_TD, w) for w in (layer.wq, layer.wk, layer.wv))
    if cfg.has_rope(i):
        q_THC, k_TKC = ops.rope(q_THC, cfg.n_heads, rope), ops.rope(k_TKC, cfg.n_kv_heads, rope)
        if cfg.qk_norm:
            q_THC, k_TKC = (ops.head_norm(x, cfg.head_dim, cfg.norm_eps) for x in (q_THC, k_TKC))
    elif cfg.query_temperature is not None:
        q_THC = ops.temper(q_THC, cfg.query_temperature)
    o_THC = ops.attend(q_THC, k_TKC, v_TKC, i, cfg.head_dim, cfg.head_dim**-0.5, cfg.chunk(i))
    return project(ops, o_THC, layer.wo)


def project(ops: Any, x_TD: Any, w: Any) -> Any:
    """x @ w.T, and what an adapter adds to it -> [T, E]."""
    if not isinstance(w, Adapted):
        return ops.linear(x_TD, w)
    return ops.add(ops.linear(x_TD, w.w), ops.linear(ops.linear(x_TD, w.down), w.up))


def cross_layer(ops: Any, cfg: ModelConfig, w: CrossLayerWeights, i: int, x_TD: Any) -> Any:
    """Cross-attention to images and a feed-forward network, both gated -> [T, D].

    Nothing changes for tokens that see no image (llama-models, llama3/multimodal/model.py).
    """
    q_THC = ops.linear(ops.rms_norm(x_TD, w.attention_norm, cfg.norm_eps), w.wq)
    q_THC = ops.head_norm(q_THC, cfg.head_dim, cfg.norm_eps, w.q_norm)
    o_THC = ops.cross_attend(q_THC, i, cfg.head_dim, cfg.head_dim**-0.5)
    x_TD = ops.add(x_TD, ops.linear(o_THC, w.wo), w.gate_attn)
    h_TD = gated(ops, w.w1, w.w2, w.w3, ops.rms_norm(x_TD, w.ffn_norm, cfg.norm_eps))
    return ops.add(x_TD, ops.mask_rows(h_TD), w.gate_ffn)


def feed_forward(ops: Any, cfg: ModelConfig, layer: LayerWeights, h_TD: Any) -> Any:
    """One gated network, or a mixture of them -> [T, D]."""
    if layer.experts is not None:
        return mixture(ops, cfg, layer.experts, h_TD)
    return gated(ops, layer.w1, layer.w2, layer.w3, h_TD, cfg.ffn_hadamard)


def mixture(ops: Any, cfg: ModelConfig, w: ExpertWeights, h_TD: Any) -> Any:
    """The experts that the router chooses for each token, and the shared one -> [T, D]."""
    assert cfg.experts is not None
    routed_TD = ops.experts(h_TD, w.router, w.experts_w1, w.experts_w2, w.experts_w3, cfg.experts.n_active)
    if not cfg.experts.shared_ffn_dim:
        return routed_TD
    return ops.add(gated(ops, w.shared_w1, w.shared_w2, w.shared_w3, h_TD), routed_TD)


def gated(ops: Any, w1: Any, w2: Any, w3: Any, h_TD: Any, hadamard: bool = False) -> Any:
    """SwiGLU: w2(silu(w1 h) * w3 h) -> [T, D].

    With `hadamard` w2 multiplies the Hadamard transform of that: SpinQuant's rotation R4, whose inverse is in
    w2 (Liu et al. 2024, arXiv 2405.16406).
    """
    h_TF = ops.swiglu(project(ops, h_TD, w1), project(ops, h_TD, w3))
    return project(ops, ops.hadamard(h_TF) if hadamard else h_TF, w2)
