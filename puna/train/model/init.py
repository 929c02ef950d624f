"""Weights to begin with, each a function of the seed and its name: the same on any layout of ranks.

Matrices are normal with a standard deviation of `std`, cut at three of them; those that add to the residual
stream (wo, w2) are smaller by the square root of twice the number of layers, so that its variance does not
grow with depth (Radford et al. 2019, section 2.3). Norms begin at 1, routers and gates as matrices do.
"""

from __future__ import annotations

from zlib import crc32

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from puna.core import BadValue
from puna.train.model.module import Llama

_CUT = 3.0  # standard deviations


@torch.no_grad()
def initialize(model: Llama, seed: int = 0, std: float = 0.02) -> None:
    """Fill all parameters, on whatever device and mesh they are. Raises BadValue for a bad `std`."""
    if not 0 < std < 1:
        raise BadValue(f"std must be above 0 and below 1, got {std}")
    damped = std / (2 * model.cfg.n_layers) ** 0.5
    for name, parameter in model.tensors():
        part = name.rpartition(".")[2]
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
            continue
        # a generator on a CPU looks at 32 bits of its seed
        random = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))
        size = damped if part.endswith(("wo", "w2")) else std
        whole = torch.empty(parameter.shape)
        nn.init.trunc_normal_(whole, 0.0, size, -_CUT * size, _CUT * size, generator=random)
        if isinstance(parameter, DTensor):
            parameter.copy_(
                distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)
            )
        else:
            parameter.copy_(whole)
