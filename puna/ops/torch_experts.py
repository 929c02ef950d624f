"""Experts in torch: tokens sorted by expert, then one product for all experts, or one for each that has
tokens.

Shapes: T tokens, A active experts of each, N = T * A rows sorted by expert, E experts, D inputs, F outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.ops.torch_weights import linear


@dataclass(slots=True)
class Shares:
    """Who computes what. Nothing here waits for the device until `counts` is asked for."""

    tokens_N: Tensor  # the token of each row
    order_N: Tensor  # its place among all T * A choices
    ends_E: Tensor  # int32: one past the last row of each expert
    n_active: int
    _counts: list[int] = field(default_factory=list)

    @property
    def counts(self) -> list[int]:
        """Rows of each expert, on the host; asked for once a layer."""
        if not self._counts:
            ends = self.ends_E.tolist()
            self._counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        return self._counts

    def collect(self, y_ND: Tensor) -> Tensor:
        """The sum over the experts of each token -> [T, D], always in the same order."""
        by_choice = torch.empty_like(y_ND)
        by_choice[self.order_N] = y_ND
        if self.n_active == 1:
            return by_choice
        return by_choice.reshape(-1, self.n_active, y_ND.shape[1]).sum(1)


def share_out(chosen_TA: Tensor, n_experts: int) -> Shares:
    chosen = chosen_TA.flatten()
    order_N = chosen.argsort(stable=True)
    counts_E = torch.zeros(n_experts, dtype=torch.int32, device=chosen.device)
    counts_E.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
    n_active = chosen_TA.shape[1]
    return Shares(order_N // n_active, order_N, counts_E.cumsum(0, dtype=torch.int32), n_active)


def grouped_linear(x_ND: Tensor, w_EFD: Any, shares: Shares) -> Tensor:
    """Each expert's rows times its matrix -> [N, F]."""
    if isinstance(w_EFD, Tensor) and grouped_is_right(x_ND.device, x_ND.dtype) and _is_aligned(w_EFD):
        y_NF: Tensor = F.grouped_mm(x_ND, w_EFD.transpose(1, 2), offs=shares.ends_E)
        return y_NF
    parts = torch.split(x_ND, shares.counts)
    return torch.cat([linear(x, w_EFD[e]) for e, x in enumerate(parts) if len(x)])


def _is_aligned(w_EFD: Tensor) -> bool:
    """Rows of 16 bytes, which the kernel asks for."""
    return all(n * w_EFD.element_size() % 16 == 0 for n in w_EFD.shape[1:])


@cache
def grouped_is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has a grouped product here that waits for nothing, and it gives what single ones give.

    Elsewhere torch.nn.functional.grouped_mm is a loop over all experts, the empty ones too.
    """
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    random = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (6, 32), generator=random).to(device, dtype)
    w = torch.randint(-4, 5, (3, 16, 32), generator=random).to(device, dtype)
    ends = torch.tensor([2, 2, 6], dtype=torch.int32, device=device)
    try:
        got = F.grouped_mm(x, w.transpose(1, 2), offs=ends)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.equal(got, torch.cat([x[:2] @ w[0].t(), x[2:] @ w[2].t()]))
