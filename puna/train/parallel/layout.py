"""The sizes of a layout, and the mesh of ranks that it makes.

Order, outermost first: replicas, shards, context, tensor: ranks that talk most are next to each other
(Llama 3, arXiv 2407.21783, section 3.3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from pydantic import with_config
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from puna.core import BadValue
from puna.model.config import ModelConfig
from puna.train.strict import STRICT

NAMES = ("replicate", "shard", "context", "tensor")  # axes, outermost first


@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class Layout:
    """Raises BadValue for sizes that make no sense."""

    replicate: int = 1  # copies of the shards (HSDP); with shard 1 plain data parallelism
    shard: int = 1  # ranks that parameters, gradients and optimizer states are split between (FSDP)
    context: int = 1  # ranks that the tokens of each row are split between
    tensor: int = 1  # ranks that each matrix product is split between

    def __post_init__(self) -> None:
        for name in NAMES:
            if (value := getattr(self, name)) < 1:
                raise BadValue(f"{name} must be 1 or more, got {value}")

    @property
    def n_ranks(self) -> int:
        return self.replicate * self.shard * self.context * self.tensor

    @property
    def n_batch(self) -> int:
        """Ranks that have rows of their own."""
        return self.replicate * self.shard

    def check(self, cfg: ModelConfig, n_ranks: int) -> None:
        """Raise BadValue where the layout does not fit the number of ranks or the model."""
        if self.n_ranks != n_ranks:
            sizes = " x ".join(str(getattr(self, name)) for name in NAMES)
            raise BadValue(
                f"{' x '.join(NAMES)} must be the {n_ranks} ranks that there are, "
                f"got {sizes} = {self.n_ranks}"
            )
        for what, n in (("key/value heads", cfg.n_kv_heads), ("columns of w1", cfg.ffn_dim)):
            if n % self.tensor:
                raise BadValue(f"tensor must divide the model's {n} {what}, got {self.tensor}")
        if self.tensor > 1 and cfg.experts is not None:
            raise BadValue("models with experts are not split by tensor; use shard")

    def mesh(self, device: str) -> DeviceMesh:
        """Of all ranks; needs a process group."""
        sizes = tuple(getattr(self, name) for name in NAMES)
        return init_device_mesh(device, sizes, mesh_dim_names=NAMES)


def batch_rank(mesh: DeviceMesh) -> int:
    """Which part of a step's rows this rank has."""
    shard = mesh["shard"]
    return int(mesh["replicate"].get_local_rank() * shard.size() + shard.get_local_rank())


def batch_group(mesh: DeviceMesh) -> dist.ProcessGroup:
    """The ranks whose tokens differ."""
    flat = mesh["replicate", "shard", "context"]._flatten("batch")
    group: dist.ProcessGroup = flat.get_group()
    return group
