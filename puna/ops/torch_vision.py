"""The ops of an image encoder in torch; see torch_ops.py. [extra: torch]

Shapes: X rows of all tiles of an image, R wanted ones, D width, Q values of a patch, F feed-forward width, H
heads, C head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.ops.torch_ops import TorchOps, full_attention


class TorchVisionOps(TorchOps):
    """table.VisionOps over tensors; one object serves one image, a model.vision.Tiles."""

    def __init__(self, tiles: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.tiles = tiles
        self.dtype = dtype
        self.device = device
        self._angles = {}
        self._padding_X = self._on_device(tiles.padding_X)
        self._wanted_RS = self._on_device(tiles.wanted_RS)

    def _on_device(self, array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _turns(self, table: Any) -> tuple[Tensor, Tensor]:
        cos_XC2, sin_XC2 = table.angles(self.tiles.patch_of_X)
        return self._on_device(cos_XC2)[:, None], self._on_device(sin_XC2)[:, None]

    def given(self, name: str) -> Tensor:
        return self._on_device(getattr(self.tiles, name)).to(self.dtype)

    def layer_norm(self, x_XD: Tensor, w_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        y_XD = F.layer_norm(x_XD.float(), x_XD.shape[-1:], w_D.float(), bias_D.float(), eps)
        return y_XD.to(x_XD.dtype)

    def gelu(self, x_XF: Tensor) -> Tensor:
        return F.gelu(x_XF)

    def mask_rows(self, x_XD: Tensor) -> Tensor:
        return x_XD.masked_fill(self._on_device(self.tiles.filling_X)[:, None], 0)

    def attend_tiles(
        self, q_XHC: Tensor, k_XHC: Tensor, v_XHC: Tensor, head_dim: int, scale: float
    ) -> Tensor:
        if not self.tiles.padding_X.any():  # groups are a batch
            q, k, v = (x.view(self.tiles.n_groups, -1, x.shape[1]) for x in (q_XHC, k_XHC, v_XHC))
            return full_attention(q, k, v, head_dim, scale).view(q_XHC.shape)
        assert self.tiles.n_groups == 1, "only Llama 3.2 pads tiles, and it attends over all of them"
        real, o_XHC = ~self._padding_X, torch.empty_like(q_XHC)
        k, v = k_XHC[real], v_XHC[real]
        o_XHC[real] = full_attention(q_XHC[real], k_XHC, v_XHC, head_dim, scale)
        o_XHC[~real] = full_attention(q_XHC[~real], k, v, head_dim, scale)
        return o_XHC

    def join(self, x_XD: Tensor, inner_XD: Sequence[Tensor]) -> Tensor:
        if not inner_XD:
            return x_XD
        return torch.cat([x_XD, torch.stack(list(inner_XD), dim=2).flatten(1)], dim=1)

    def gather(self, x_XD: Tensor) -> Tensor:
        return x_XD[self._wanted_RS].flatten(1)
