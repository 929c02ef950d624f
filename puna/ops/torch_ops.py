"""The ops of table.py in torch, on any of its devices: for GPUs and for training.

Activations have the dtype of the computation (bfloat16 on accelerators, float32 on a CPU); norms, rotary
angles and the softmax are float32. Weights are what `linear` can multiply: a tensor [E, D], or an object with
`linear(x)`, such as a quantized or an adapted one.

Results depend on the batch in their last bits, as torch's kernels choose another order of sums by shape. The
promise of equal bits is the native executor's alone.

Attention is in torch_attention.py, experts in torch_experts.py, kinds of weight in torch_weights.py.

Shapes: T tokens of the step, B sequences, R wanted rows, D model width, E output width, H query heads, K
key/value heads, C head width, F feed-forward width, V vocabulary, L layers, S cache slots, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.core import Batch, Chunk
from puna.ops.adapters import Adaptable, AdapterRows, adapter_rows
from puna.ops.images import NO_IMAGES, StepImages
from puna.ops.torch_attention import Masks, attend_span, masks_of
from puna.ops.torch_experts import grouped_linear, share_out
from puna.ops.torch_weights import linear, lookup

_SHALLOW = 512  # positions: shorter sequences are padded to the longest of them and attended together


class Cache:
    """Keys and values of every layer, in pages.

    Position p of a sequence is in slot blocks[p // block_size] * block_size + p % block_size. `local_layers`
    have `n_local_blocks` of their own (core.Executor.local_window), and the tables of a chunk's local blocks.
    """

    def __init__(
        self,
        n_layers: int,
        n_blocks: int,
        block_size: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        n_local_blocks: int = 0,
        local_layers: Sequence[int] = (),
    ) -> None:
        self.block_size, self.n_blocks, self.n_local_blocks = block_size, n_blocks, n_local_blocks
        self.local_layers = frozenset(local_layers)
        self.device = device
        n_slots = [
            block_size * (n_local_blocks if i in self.local_layers else n_blocks) for i in range(n_layers)
        ]
        self.keys, self.values = (  # [S, K, C] of each layer
            [torch.zeros((n, n_kv_heads, head_dim), dtype=dtype, device=device) for n in n_slots]
            for _ in range(2)
        )


@dataclass(frozen=True, slots=True)
class Span:
    """Chunks of equal length that are attended together."""

    rows_BN: Tensor  # rows of the step, N tokens of each of B sequences
    slots_BP: Tensor  # cache slots of positions 0 .. P-1; its own last slot where a sequence is shorter
    last_BN: Tensor  # position of each token
    starts: tuple[int, int] | None  # least and largest first position; None: not known on the host
    local_slots_BP: Tensor | None = None  # of local layers; the first of its table where that begins later

    @property
    def from_start(self) -> bool:
        """Every sequence begins in this step."""
        return self.starts == (0, 0)

    def masks(self, chunk: int | None) -> Masks:
        """What each token may look at: all before it, of its own `chunk` of positions if there are chunks."""
        n_positions = self.slots_BP.shape[1]
        if self.from_start and (chunk is None or chunk >= n_positions):
            return None
        return masks_of(self.last_BN, self.starts, n_positions, chunk)


@dataclass(frozen=True, slots=True)
class Step:
    """What block.py hands on unseen: tokens, positions, cache and wanted rows of one step."""

    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor  # where keys and values of the step go
    spans: tuple[Span, ...]
    wanted_R: Tensor  # rows of the step after which logits are wanted
    cache: Cache
    images: StepImages = NO_IMAGES
    local_slots_T: Tensor | None = None  # of local layers
    adapters: AdapterRows = ()

    @classmethod
    def of(cls, batch: Batch, cache: Cache, images: StepImages = NO_IMAGES) -> Step:
        chunks = batch.chunks
        starts = np.cumsum([0, *(len(c.tokens) for c in chunks)])
        positions = [np.arange(c.start, c.start + len(c.tokens)) for c in chunks]
        slots = [_slots(c.blocks, 0, c, cache.block_size) for c in chunks]
        local = None
        if cache.local_layers:
            local = [_slots(c.local_blocks, c.local_start, c, cache.block_size) for c in chunks]
        wanted = [np.arange(end - c.n_logits, end) for c, end in zip(chunks, starts[1:], strict=True)]
        alike: dict[tuple[int, int], list[int]] = {}  # by length, and by depth to within a factor of two
        for i, c in enumerate(chunks):
            alike.setdefault((len(c.tokens), (c.start + _SHALLOW).bit_length()), []).append(i)
        return cls(
            tokens_T=_tensor(np.concatenate([np.asarray(c.tokens, np.int64) for c in chunks]), cache.device),
            positions_T=_tensor(np.concatenate(positions), cache.device),
            slots_T=_new_slots(slots, chunks, cache.device),
            spans=tuple(
                _span(n, [chunks[i].start for i in same], starts[same], slots, local, same, cache.device)
                for (n, _), same in alike.items()
            ),
            wanted_R=_tensor(np.concatenate(wanted), cache.device),
            cache=cache,
            images=images,
            local_slots_T=None if local is None else _new_slots(local, chunks, cache.device),
            adapters=adapter_rows(batch),
        )


def _slots(table: Sequence[int], origin: int, chunk: Chunk, block_size: int) -> Any:
    """Cache slots of positions 0 .. end of the chunk by a table that begins at `origin`.

    Before that stands its first slot, which is written: a weight of 0 times what lies elsewhere might be no
    number.
    """
    end = chunk.start + len(chunk.tokens)
    assert end <= origin + len(table) * block_size, "the block table ends before the chunk"
    blocks = np.asarray(table, np.int64)
    slots = (blocks[:, None] * block_size + np.arange(block_size)).ravel()[: end - origin]
    return np.concatenate([np.full(origin, slots[0]), slots]) if origin else slots


def _new_slots(slots: Sequence[Any], chunks: Sequence[Chunk], device: torch.device) -> Tensor:
    """Those of the step's own tokens."""
    return _tensor(np.concatenate([s[c.start :] for s, c in zip(slots, chunks, strict=True)]), device)


def _span(
    n: int,
    starts: Sequence[int],
    first_rows: Any,
    slots: Sequence[Any],
    local: Sequence[Any] | None,
    same: Sequence[int],
    device: torch.device,
) -> Span:
    longest = max(starts) + n
    rows_BN, last_BN = (np.asarray(first)[:, None] + np.arange(n) for first in (first_rows, starts))
    return Span(
        _tensor(rows_BN, device),
        _tensor(_padded([slots[i] for i in same], longest), device),
        _tensor(last_BN, device),
        (min(starts), max(starts)),
        None if local is None else _tensor(_padded([local[i] for i in same], longest), device),
    )


def _padded(slots: Sequence[Any], longest: int) -> Any:
    """Rows of one length; shorter ones go on with their own last slot, for the reason that _slots gives."""
    return np.stack([np.pad(own, (0, longest - len(own)), mode="edge") for own in slots])


def _tensor(array: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


class TorchOps:
    """table.Ops over tensors; one object serves one step."""

    def __init__(self, step: Step, dtype: torch.dtype) -> None:
        self.step = step
        self.dtype = dtype  # of activations
        # what every layer asks for again: by identity of the table, by span and chunk
        self._angles: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int | None], Masks] = {}

    def embed(self, w_VD: Any, more_MD: Tensor | None = None) -> Tensor:
        ids_T = self.step.tokens_T
        if more_MD is None:
            x_TD = lookup(w_VD, ids_T, self.dtype)
        else:
            n = len(w_VD)
            more_TD = F.embedding((ids_T - n).clamp(min=0), more_MD).to(self.dtype)
            x_TD = lookup(w_VD, ids_T.clamp(max=n - 1), self.dtype)
            x_TD = torch.where((ids_T < n)[:, None], x_TD, more_TD)
        for image in self.step.images.fused:
            rows_N, parts_N = (_tensor(i, x_TD.device) for i in (image.rows_N, image.parts_N))
            x_TD[rows_N] = image.image_ID[parts_N].to(self.dtype)
        return x_TD

    def linear(self, x_TD: Tensor, w_ED: Any, bias_E: Tensor | None = None) -> Tensor:
        if isinstance(w_ED, Adaptable):
            return self._adapted(x_TD, w_ED)
        y_TE = linear(x_TD, w_ED)
        return y_TE if bias_E is None else y_TE + bias_E.to(x_TD.dtype)

    def _adapted(self, x_TD: Tensor, w_ED: Adaptable) -> Tensor:
        y_TE = linear(x_TD, w_ED.w_ED)
        for number, rows in self.step.adapters:
            if number in w_ED.adapters:
                down_AD, up_EA, scale = w_ED.adapters[number]
                y_TE[rows] += scale * linear(linear(x_TD[rows], down_AD), up_EA)
        return y_TE

    def add(self, a_TD: Tensor, b_TD: Tensor, gate_1: Tensor | None = None) -> Tensor:
        return a_TD + (b_TD if gate_1 is None else gate_1.tanh().to(b_TD.dtype) * b_TD)

    def rms_norm(self, x_TD: Tensor, w_D: Tensor, eps: float) -> Tensor:
        x = x_TD.float()
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        return (y * w_D.float()).to(x_TD.dtype)

    def rope(self, x_THC: Tensor, n_heads: int, freqs_C2: Any) -> Tensor:
        if id(freqs_C2) not in self._angles:
            self._angles[id(freqs_C2)] = self._turns(freqs_C2)
        cos_T1C2, sin_T1C2 = self._angles[id(freqs_C2)]
        a, b = x_THC.float().reshape(len(x_THC), n_heads, -1, 2).unbind(-1)
        turned = torch.stack((a * cos_T1C2 - b * sin_T1C2, a * sin_T1C2 + b * cos_T1C2), dim=-1)
        return turned.reshape(x_THC.shape).to(x_THC.dtype)

    def _turns(self, table: Any) -> tuple[Tensor, Tensor]:
        return _angles(table, self.step.positions_T)

    def attend(
        self,
        q_THC: Tensor,
        k_TKC: Tensor,
        v_TKC: Tensor,
        layer: int,
        head_dim: int,
        scale: float,
        chunk: int | None = None,
    ) -> Tensor:
        step, cache = self.step, self.step.cache
        is_local = layer in cache.local_layers
        keys_SKC, values_SKC = cache.keys[layer], cache.values[layer]
        slots_T = step.local_slots_T if is_local else step.slots_T
        keys_SKC[slots_T] = k_TKC.view(len(k_TKC), -1, head_dim).to(keys_SKC.dtype)
        values_SKC[slots_T] = v_TKC.view(len(v_TKC), -1, head_dim).to(values_SKC.dtype)
        q = q_THC.view(len(q_THC), -1, head_dim)
        o = torch.empty_like(q)
        for i, span in enumerate(step.spans):
            masks = self._visible(i, chunk)
            slots_BP = span.local_slots_BP if is_local else span.slots_BP
            assert slots_BP is not None
            o[span.rows_BN] = attend_span(q[span.rows_BN], keys_SKC, values_SKC, slots_BP, masks, scale)
        return o.view(q_THC.shape)

    def _visible(self, span: int, chunk: int | None) -> Masks:
        if (span, chunk) not in self._masks:
            self._masks[span, chunk] = self.step.spans[span].masks(chunk)
        return self._masks[span, chunk]

    def cross_attend(self, q_THC: Tensor, layer: int, head_dim: int, scale: float) -> Tensor:
        o_THC = torch.zeros_like(q_THC)
        for seen in self.step.images.seen:
            parts = [image[layer] for image in seen.images]
            k_IKC, v_IKC = (
                parts[0] if len(parts) == 1 else (torch.cat(each) for each in zip(*parts, strict=True))
            )
            o_THC[seen.rows] = full_attention(q_THC[seen.rows], k_IKC, v_IKC, head_dim, scale)
        return o_THC

    def mask_rows(self, x_TD: Tensor) -> Tensor:
        y_TD = torch.zeros_like(x_TD)
        for seen in self.step.images.seen:
            y_TD[seen.rows] = x_TD[seen.rows]
        return y_TD

    def head_norm(self, x_THC: Tensor, head_dim: int, eps: float, w_C: Tensor | None = None) -> Tensor:
        x_TXC = x_THC.float().view(len(x_THC), -1, head_dim)
        y_TXC = x_TXC * torch.rsqrt(x_TXC.square().mean(-1, keepdim=True) + eps)
        if w_C is not None:
            y_TXC = y_TXC * w_C.float()
        return y_TXC.view(x_THC.shape).to(x_THC.dtype)

    def temper(self, q_THC: Tensor, temperature: Any) -> Tensor:
        steps_T = torch.floor((self.step.positions_T.double() + 1) / temperature.floor_scale)
        factor_T = 1 + temperature.attn_scale * torch.log1p(steps_T)
        y_THC: Tensor = (q_THC.float() * factor_T.float()[:, None]).to(q_THC.dtype)
        return y_THC

    def experts(
        self, x_TD: Tensor, router_ED: Any, w1_EFD: Any, w2_EDF: Any, w3_EFD: Any, n_active: int
    ) -> Tensor:
        scores_TA, chosen_TA = self.linear(x_TD, router_ED).float().topk(n_active)
        shares = share_out(chosen_TA, len(w1_EFD))
        # Llama 4 scales what an expert is given, not what it returns
        h_ND = x_TD[shares.tokens_N] * scores_TA.sigmoid().to(x_TD.dtype).flatten()[shares.order_N, None]
        h_NF = self.swiglu(grouped_linear(h_ND, w1_EFD, shares), grouped_linear(h_ND, w3_EFD, shares))
        return shares.collect(grouped_linear(h_NF, w2_EDF, shares))

    def swiglu(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        return F.silu(gate_TF) * up_TF

    def hadamard(self, x_TF: Tensor) -> Tensor:
        """H of n*m columns is the Kronecker product of H of n and H of m: two small products, in float32."""
        width = x_TF.shape[1]
        m = 1 << (width.bit_length() // 2)
        x_TNM = x_TF.float().reshape(len(x_TF), width // m, m)
        left, right = (_hadamard_matrix(n, x_TF.device) for n in (width // m, m))
        y_TF: Tensor = (left @ (x_TNM @ right)).reshape(x_TF.shape).to(x_TF.dtype)
        return y_TF

    def select(self, x_TD: Tensor) -> Tensor:
        return x_TD[self.step.wanted_R]


@cache
def _hadamard_matrix(n: int, device: torch.device) -> Tensor:
    """Sylvester's matrix over sqrt(n), float32 [n, n]; it is its own inverse."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    scaled: Tensor = (h / n**0.5).float().to(device)
    return scaled


def full_attention(q_XHC: Tensor, k_PKC: Tensor, v_PKC: Tensor, head_dim: int, scale: float) -> Tensor:
    """Attention of each of X rows over all of P positions -> [X, H*C]; a leading axis is a batch."""
    q, k, v = (
        x.view(*x.shape[:-1], -1, head_dim).transpose(-2, -3).to(q_XHC.dtype) for x in (q_XHC, k_PKC, v_PKC)
    )
    if q.ndim == 3:  # the fast kernels want a batch
        q, k, v = q[None], k[None], v[None]
    o = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
    return o.transpose(-2, -3).reshape(q_XHC.shape)


def _angles(table: Any, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T, 1, C/2]; the product is float64, as in model/rope.py."""
    frequencies = table.frequencies
    if not isinstance(frequencies, Tensor):
        frequencies = torch.as_tensor(np.array(frequencies), device=positions_T.device)
    angles_TC2 = positions_T.double()[:, None] * frequencies
    cos, sin = torch.cos(angles_TC2), torch.sin(angles_TC2)
    factor = table.attention_factor
    return (cos * factor).float()[:, None], (sin * factor).float()[:, None]
