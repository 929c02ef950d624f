"""The ops of ops/table.py for training: no cache, whole rows at a time, and weights that are modules.

Heads are counted by the width of what comes in, so that a layer whose heads are split between ranks needs no
other code.

Shapes: B rows, N tokens of each, T = B * N, D model width, E output width, H query heads, K key/value heads,
C head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_tensor_autograd

from puna.ops.torch_ops import TorchOps
from puna.train.model.rows import Rows


class TrainOps(TorchOps):
    """One object serves one forward pass."""

    def __init__(self, rows: Rows, dtype: torch.dtype) -> None:
        super().__init__(rows, dtype)  # type: ignore[arg-type]  # of a step it reads what Rows has as well
        self._rows = rows
        self._seen: dict[int | None, Tensor | None] = {}

    def embed(self, w_VD: Any, more_MD: Any = None) -> Tensor:
        if isinstance(w_VD, nn.Module):
            x_TD: Tensor = w_VD(self._rows.tokens_T).to(self.dtype)
            return x_TD
        return super().embed(w_VD, more_MD)

    def linear(self, x_TD: Tensor, w_ED: Any, bias_E: Tensor | None = None) -> Tensor:
        if isinstance(w_ED, nn.Module):
            y_TE: Tensor = w_ED(x_TD)
            return y_TE if bias_E is None else y_TE + bias_E.to(x_TD.dtype)
        return super().linear(x_TD, w_ED, bias_E)

    def rope(self, x_THC: Tensor, n_heads: int, freqs_C2: Any) -> Tensor:
        head_dim = 2 * len(freqs_C2.frequencies)
        return super().rope(x_THC, x_THC.shape[-1] // head_dim, freqs_C2)

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
        n_rows = len(self._rows.tokens_BN)
        q, k, v = (
            x.view(n_rows, len(x) // n_rows, -1, head_dim).transpose(1, 2) for x in (q_THC, k_TKC, v_TKC)
        )
        if (keys := self._rows.keys) is not None:
            k, v = (all_gather_tensor_autograd(x.contiguous(), 2, keys.group) for x in (k, v))
        if chunk not in self._seen:
            self._seen[chunk] = self._rows.seen(chunk)
        seen = self._seen[chunk]
        o_BHNC = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=True
        )
        return o_BHNC.transpose(1, 2).reshape(q_THC.shape)

    def select(self, x_TD: Tensor) -> Tensor:
        return x_TD
