"""What a Llama computes. The whole text decoder, written once over the ops of ops/table.py.

`Weights` mirrors Meta's checkpoint: an implementation of the ops decides what an entry is (an array, a packed
matrix, a name while recording). Executors may fuse; the golden vectors hold them to this definition.

Shapes: T tokens, D dim, H heads, K key/value heads, C head_dim, F ffn_dim, V vocabulary, R wanted rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from puna.model.config import ModelConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attention_norm: Any  # [D]
    wq: Any  # [H*C, D], rows of a head in interleaved-pair order (Meta's)
    wk: Any  # [K*C, D], likewise
    wv: Any  # [K*C, D]
    wo: Any  # [D, H*C]
    ffn_norm: Any  # [D]
    w1: Any  # [F, D] gate
    w2: Any  # [D, F] down
    w3: Any  # [F, D] up


@dataclass(frozen=True, slots=True)
class Weights:
    tok_embeddings: Any  # [V, D]
    layers: tuple[LayerWeights, ...]
    norm: Any  # [D]
    output: Any  # [V, D]; the same object as tok_embeddings where tied
    rope: Any  # rope.RopeTable


def decoder(ops: Any, cfg: ModelConfig, w: Weights) -> Any:
    """Logits [R, V] of the rows that the step wants."""
    x_TD = ops.embed(w.tok_embeddings)
    for i, layer in enumerate(w.layers):
        h_TD = ops.rms_norm(x_TD, layer.attention_norm, cfg.norm_eps)
        x_TD = ops.add(x_TD, attention(ops, cfg, layer, i, w.rope, h_TD))
        h_TD = ops.rms_norm(x_TD, layer.ffn_norm, cfg.norm_eps)
        x_TD = ops.add(x_TD, feed_forward(ops, layer, h_TD))
    x_RD = ops.select(x_TD)
    return ops.linear(ops.rms_norm(x_RD, w.norm, cfg.norm_eps), w.output)


def attention(ops: Any, cfg: ModelConfig, layer: LayerWeights, i: int, rope: Any, h_TD: Any) -> Any:
    """Grouped-query causal self-attention with rotary positions -> [T, D]."""
    q_THC = ops.rope(ops.linear(h_TD, layer.wq), cfg.n_heads, rope)
    k_TKC = ops.rope(ops.linear(h_TD, layer.wk), cfg.n_kv_heads, rope)
    v_TKC = ops.linear(h_TD, layer.wv)
    o_THC = ops.attend(q_THC, k_TKC, v_TKC, i, cfg.head_dim, cfg.head_dim**-0.5)
    return ops.linear(o_THC, layer.wo)


def feed_forward(ops: Any, layer: LayerWeights, h_TD: Any) -> Any:
    """SwiGLU: w2(silu(w1 h) * w3 h) -> [T, D]."""
    return ops.linear(ops.swiglu(ops.linear(h_TD, layer.w1), ops.linear(h_TD, layer.w3)), layer.w2)
