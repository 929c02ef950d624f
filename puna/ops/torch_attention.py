"""Attention of tokens over pages of the cache, in torch.

Queries of one key/value head are rows of one matrix, so that grouped-query attention reads every key once and
no kernel has to know of groups. Queries are worked on a tile at a time: neither scores nor masks of a long
prompt over a long context are ever whole in memory, and a tile looks no further than its last token.

Shapes: B sequences, N tokens of each, P positions, S cache slots, H query heads, K key/value heads, G = H /
K, C head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128  # tokens of each sequence that are attended at a time, where a mask is needed


class Tile(NamedTuple):
    tokens: slice  # of N
    positions: slice  # of P: those that any of the tokens may look at
    seen_B1NP: Tensor  # bool, of these tokens and positions


Masks = list[Tile] | None  # None: plain causal from position 0 on


def masks_of(
    last_BN: Tensor, starts: tuple[int, int] | None, n_positions: int, chunk: int | None
) -> list[Tile]:
    """Tiles of N tokens at positions `last_BN`; `starts` are the least and the largest first position.

    A token sees the positions up to its own, and with `chunk` those of its own chunk of so many positions
    only.
    """
    n_tokens = last_BN.shape[1]
    tiles = []
    for begin in range(0, n_tokens, TILE):
        end = min(begin + TILE, n_tokens)
        first, after = 0, n_positions
        if starts is not None:
            after = min(after, starts[1] + end)
            first = (starts[0] + begin) // chunk * chunk if chunk is not None else 0
        positions_P = torch.arange(first, after, device=last_BN.device)
        own_BN1 = last_BN[:, begin:end, None]
        seen_BNP = positions_P <= own_BN1
        if chunk is not None:
            seen_BNP &= positions_P >= own_BN1 // chunk * chunk
        tiles.append(Tile(slice(begin, end), slice(first, after), seen_BNP[:, None]))
    return tiles


def attend_span(
    q_BNHC: Tensor, keys_SKC: Tensor, values_SKC: Tensor, slots_BP: Tensor, masks: Masks, scale: float
) -> Tensor:
    """softmax(scale * q k) v -> [B, N, H, C]."""
    if masks is None:
        k_BKPC, v_BKPC = _gather(keys_SKC, values_SKC, slots_BP, q_BNHC.dtype)
        o_BHNC = F.scaled_dot_product_attention(
            q_BNHC.transpose(1, 2), k_BKPC, v_BKPC, is_causal=True, scale=scale, enable_gqa=True
        )
        return o_BHNC.transpose(1, 2)
    parts = []
    for tokens, positions, seen_B1NP in masks:
        k_BKPC, v_BKPC = _gather(keys_SKC, values_SKC, slots_BP[:, positions], q_BNHC.dtype)
        parts.append(_attend_tile(q_BNHC[:, tokens], k_BKPC, v_BKPC, seen_B1NP, scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _gather(
    keys_SKC: Tensor, values_SKC: Tensor, slots_BP: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    k_BPKC, v_BPKC = keys_SKC[slots_BP], values_SKC[slots_BP]
    return k_BPKC.transpose(1, 2).to(dtype), v_BPKC.transpose(1, 2).to(dtype)


def _attend_tile(q_BNHC: Tensor, k_BKPC: Tensor, v_BKPC: Tensor, seen_B1NP: Tensor, scale: float) -> Tensor:
    n_batch, n_tokens, n_heads, head_dim = q_BNHC.shape
    n_kv_heads = k_BKPC.shape[1]
    per_kv_head = n_heads // n_kv_heads
    grouped = (n_batch, n_tokens, n_kv_heads, per_kv_head, head_dim)
    # rows of a key/value head: token by token, its query heads one after the other
    q = q_BNHC.reshape(grouped).transpose(1, 2).flatten(2, 3)
    seen = seen_B1NP
    if n_tokens > 1 and per_kv_head > 1:
        seen = seen.repeat_interleave(per_kv_head, dim=2)
    o = F.scaled_dot_product_attention(q, k_BKPC, v_BKPC, seen, scale=scale)
    o = o.reshape(n_batch, n_kv_heads, n_tokens, per_kv_head, head_dim).transpose(1, 2)
    return o.reshape(n_batch, n_tokens, n_heads, head_dim)
