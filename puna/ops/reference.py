"""The ops of table.py in plain numpy: what every other implementation is compared with.

Correct and readable first: matrices are float32 arrays, attention gathers its keys and values through the
block table, nothing is fused. Sums that are cheap to make exact (norms, softmax) are float64. The matrix
products are BLAS's, so that real checkpoints run at a usable speed; the last bits of a row may therefore
depend on how many rows are multiplied at once, which a real executor must not allow.

Knows nothing of models: block.py calls these ops, runtime/reference.py puts both together.

Shapes: T tokens of the step, R wanted rows, D model width, E output width, H query heads, K key/value
heads, G = H / K, C head width, F feed-forward width, V vocabulary, L layers, S cache slots, P positions of
one sequence, E experts, A chosen ones, N tokens of one expert, X any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch
from puna.ops.adapters import Adaptable, AdapterRows, adapter_rows
from puna.ops.images import NO_IMAGES, StepImages

Array = NDArray[np.float32]
Indices = NDArray[np.int64]

QUERY_BLOCK = 256  # queries attended at once: bounds the scores to H * 256 * P floats


class Cache:
    """Keys and values of every layer.

    Position p of a sequence is in slot blocks[p // block_size] * block_size + p % block_size.
    """

    def __init__(self, n_layers: int, n_blocks: int, block_size: int, width: int) -> None:
        """`width` is K * C, the floats of one position's keys."""
        self.block_size = block_size
        self.keys_LSKC = np.zeros((n_layers, n_blocks * block_size, width), np.float32)
        self.values_LSKC = np.zeros_like(self.keys_LSKC)


@dataclass(frozen=True, slots=True)
class Span:
    """One chunk's part of the step."""

    rows: slice  # of the step's tokens
    start: int  # position of the first of them
    slots_P: Indices  # cache slots of positions 0 .. start + rows - 1


@dataclass(frozen=True, slots=True)
class Step:
    """What block.py hands on unseen: tokens, positions, cache and wanted rows of one step."""

    tokens_T: Indices
    positions_T: Indices
    spans: tuple[Span, ...]
    wanted_R: Indices  # rows of the step after which logits are wanted
    cache: Cache
    images: StepImages = NO_IMAGES
    adapters: AdapterRows = ()

    @classmethod
    def of(cls, batch: Batch, cache: Cache, images: StepImages = NO_IMAGES) -> Step:
        tokens, positions, wanted, spans, row = [], [], [], [], 0
        for chunk in batch.chunks:
            n = len(chunk.tokens)
            end = chunk.start + n
            assert n >= max(chunk.n_logits, 1), "a chunk without tokens, or with more logits than tokens"
            assert end <= len(chunk.blocks) * cache.block_size, "the block table ends before the chunk"
            blocks = np.asarray(chunk.blocks, np.int64)
            slots_P = (blocks[:, None] * cache.block_size + np.arange(cache.block_size)).ravel()[:end]
            tokens.append(np.asarray(chunk.tokens, np.int64))
            positions.append(np.arange(chunk.start, end))
            wanted.append(np.arange(row + n - chunk.n_logits, row + n))
            spans.append(Span(slice(row, row + n), chunk.start, slots_P))
            row += n
        return cls(
            np.concatenate(tokens),
            np.concatenate(positions),
            tuple(spans),
            np.concatenate(wanted),
            cache,
            images,
            adapter_rows(batch),
        )


class NumpyOps:
    """table.Ops over float32 arrays; one object serves one step."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.positions_T = step.positions_T
        self._angles: dict[int, tuple[Array, Array]] = {}  # by identity of the table; every layer asks

    def embed(self, w_VD: Array, more_MD: Array | None = None) -> Array:
        ids_T, n = self.step.tokens_T, len(w_VD)
        x_TD: Array = w_VD[np.minimum(ids_T, n - 1)] if more_MD is not None else w_VD[ids_T]
        if more_MD is not None:
            x_TD[ids_T >= n] = more_MD[ids_T[ids_T >= n] - n]
        for image in self.step.images.fused:
            x_TD[image.rows_N] = image.image_ID[image.parts_N]
        return x_TD

    def linear(self, x_TD: Array, w_ED: Array | Adaptable, bias_E: Array | None = None) -> Array:
        if isinstance(w_ED, Adaptable):
            y_TE = self.linear(x_TD, w_ED.w_ED, bias_E)
            for number, rows in self.step.adapters:
                if number in w_ED.adapters:
                    down_AD, up_EA, scale = w_ED.adapters[number]
                    y_TE[rows] += (scale * (x_TD[rows] @ down_AD.T)) @ up_EA.T
            return y_TE
        y_TE = x_TD @ w_ED.T
        return y_TE if bias_E is None else y_TE + bias_E

    def add(self, a_TD: Array, b_TD: Array, gate_1: Array | None = None) -> Array:
        return a_TD + (b_TD if gate_1 is None else np.tanh(gate_1) * b_TD)

    def rms_norm(self, x_TD: Array, w_D: Array, eps: float) -> Array:
        mean_T1 = np.mean(np.square(x_TD, dtype=np.float64), axis=1, keepdims=True)
        y_TD: Array = (x_TD / np.sqrt(mean_T1 + eps) * w_D).astype(np.float32)
        return y_TD

    def rope(self, x_THC: Array, n_heads: int, freqs_C2: Any) -> Array:
        if id(freqs_C2) not in self._angles:
            self._angles[id(freqs_C2)] = freqs_C2.angles(self.positions_T)
        cos_TC2, sin_TC2 = self._angles[id(freqs_C2)]
        x_THC22 = x_THC.reshape(len(x_THC), n_heads, -1, 2)
        a, b = x_THC22[..., 0], x_THC22[..., 1]
        cos, sin = cos_TC2[:, None], sin_TC2[:, None]
        turned: Array = np.stack((a * cos - b * sin, a * sin + b * cos), axis=-1)
        return turned.reshape(x_THC.shape)

    def head_norm(self, x_THC: Array, head_dim: int, eps: float, w_C: Array | None = None) -> Array:
        heads_XC, w_C = x_THC.reshape(-1, head_dim), np.ones(head_dim, np.float32) if w_C is None else w_C
        return self.rms_norm(heads_XC, w_C, eps).reshape(x_THC.shape)

    def temper(self, q_THC: Array, temperature: Any) -> Array:
        steps_T = np.floor((self.step.positions_T + 1) / temperature.floor_scale)
        factor_T = 1 + temperature.attn_scale * np.log1p(steps_T)
        y_THC: Array = q_THC * factor_T.astype(np.float32)[:, None]
        return y_THC

    def attend(
        self,
        q_THC: Array,
        k_TKC: Array,
        v_TKC: Array,
        layer: int,
        head_dim: int,
        scale: float,
        chunk: int | None = None,
    ) -> Array:
        keys_SKC, values_SKC = self.step.cache.keys_LSKC[layer], self.step.cache.values_LSKC[layer]
        o_THC = np.empty_like(q_THC)
        for span in self.step.spans:
            new = span.slots_P[span.start :]
            keys_SKC[new], values_SKC[new] = k_TKC[span.rows], v_TKC[span.rows]
            k_PKC, v_PKC = keys_SKC[span.slots_P], values_SKC[span.slots_P]
            o_THC[span.rows] = attention(q_THC[span.rows], k_PKC, v_PKC, head_dim, scale, chunk)
        return o_THC

    def cross_attend(self, q_THC: Array, layer: int, head_dim: int, scale: float) -> Array:
        o_THC = np.zeros_like(q_THC)
        for seen in self.step.images.seen:
            k_IKC, v_IKC = (np.concatenate([image[layer][i] for image in seen.images]) for i in (0, 1))
            o_THC[seen.rows] = full_attention(q_THC[seen.rows], k_IKC, v_IKC, head_dim, scale)
        return o_THC

    def mask_rows(self, x_TD: Array) -> Array:
        y_TD = np.zeros_like(x_TD)
        for seen in self.step.images.seen:
            y_TD[seen.rows] = x_TD[seen.rows]
        return y_TD

    def swiglu(self, gate_TF: Array, up_TF: Array) -> Array:
        with np.errstate(over="ignore"):  # below about -88 exp gives inf, and silu -0, as it should be
            y_TF: Array = gate_TF / (1 + np.exp(-gate_TF)) * up_TF
        return y_TF

    def hadamard(self, x_TF: Array) -> Array:
        n_tokens, width = x_TF.shape
        y_TF = x_TF.astype(np.float64)
        h = 1
        while h < width:
            pairs = y_TF.reshape(n_tokens, -1, 2, h)
            y_TF = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2)
            h *= 2
        result: Array = (y_TF.reshape(n_tokens, width) / np.sqrt(width)).astype(np.float32)
        return result

    def experts(
        self, x_TD: Array, router_ED: Array, w1_EFD: Array, w2_EDF: Array, w3_EFD: Array, n_active: int
    ) -> Array:
        scores_TE = x_TD @ router_ED.T
        chosen_TA = np.argsort(-scores_TE, axis=1, kind="stable")[:, :n_active]
        y_TD = np.zeros_like(x_TD)
        for e in np.unique(chosen_TA):
            rows = np.nonzero((chosen_TA == e).any(axis=1))[0]
            s_N1 = 1 / (1 + np.exp(-scores_TE[rows, e]))[:, None]
            h_ND = (x_TD[rows] * s_N1).astype(np.float32)
            y_TD[rows] += self.swiglu(h_ND @ w1_EFD[e].T, h_ND @ w3_EFD[e].T) @ w2_EDF[e].T
        return y_TD

    def select(self, x_TD: Array) -> Array:
        return x_TD[self.step.wanted_R]


def full_attention(q_THC: Array, k_PKC: Array, v_PKC: Array, head_dim: int, scale: float) -> Array:
    """Attention of each of T rows over all of P positions -> [T, H*C]."""
    n_positions = len(k_PKC)
    k_KCP = k_PKC.reshape(n_positions, -1, head_dim).transpose(1, 2, 0)
    v_KPC = v_PKC.reshape(n_positions, -1, head_dim).transpose(1, 0, 2)
    n_grouped = q_THC.shape[1] // k_PKC.shape[1]
    q_TKGC = q_THC.reshape(len(q_THC), len(k_KCP), n_grouped, head_dim)
    o_TKGC = np.empty_like(q_TKGC)
    for rows in _blocks(len(q_THC)):
        scores_KGTP = q_TKGC[rows].transpose(1, 2, 0, 3) @ k_KCP[:, None] * np.float32(scale)
        o_TKGC[rows] = (_softmax(scores_KGTP) @ v_KPC[:, None]).transpose(2, 0, 1, 3)
    return o_TKGC.reshape(q_THC.shape)


def attention(
    q_THC: Array, k_PKC: Array, v_PKC: Array, head_dim: int, scale: float, chunk: int | None = None
) -> Array:
    """Causal attention of the last T of P positions -> [T, H*C] (Ainslie et al. 2023).

    Over all of them, or with `chunk` over those of the token's own chunk.
    """
    n_tokens, n_positions = len(q_THC), len(k_PKC)
    n_kv_heads = k_PKC.shape[1] // head_dim
    k_KCP = k_PKC.reshape(n_positions, n_kv_heads, head_dim).transpose(1, 2, 0)
    v_KPC = v_PKC.reshape(n_positions, n_kv_heads, head_dim).transpose(1, 0, 2)
    q_TKGC = q_THC.reshape(n_tokens, n_kv_heads, -1, head_dim)
    o_TKGC = np.empty_like(q_TKGC)
    for rows in _blocks(n_tokens):
        seen = n_positions - n_tokens + rows.stop  # the last query of the block sees positions before this
        q_KGTC = q_TKGC[rows].transpose(1, 2, 0, 3)
        scores_KGTP = q_KGTC @ k_KCP[:, None, :, :seen]
        w_KGTP = _causal_softmax(scores_KGTP * np.float32(scale), chunk or seen)
        o_TKGC[rows] = (w_KGTP @ v_KPC[:, None, :seen]).transpose(2, 0, 1, 3)
    return o_TKGC.reshape(q_THC.shape)


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, QUERY_BLOCK):
        yield slice(start, min(start + QUERY_BLOCK, n))


def _causal_softmax(scores_KGTP: Array, chunk: int) -> Array:
    """Softmax of the last T of P positions, each over those of its chunk up to itself; in place."""
    n_tokens, n_positions = scores_KGTP.shape[-2:]
    positions_T1 = np.arange(n_positions - n_tokens, n_positions)[:, None]
    positions_P = np.arange(n_positions)
    hidden_TP = (positions_P > positions_T1) | (positions_P < positions_T1 // chunk * chunk)
    scores_KGTP[..., hidden_TP] = -np.inf
    return _softmax(scores_KGTP)


def _softmax(scores_KGTP: Array) -> Array:
    """Over the last axis, in place."""
    scores_KGTP -= scores_KGTP.max(axis=-1, keepdims=True)
    np.exp(scores_KGTP, out=scores_KGTP)
    scores_KGTP /= scores_KGTP.sum(axis=-1, keepdims=True, dtype=np.float64)
    return scores_KGTP
