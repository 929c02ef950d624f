"""A model over a mesh of ranks: matrices split by tensor parallelism, then everything sharded (FSDP2).

Megatron's split (Shoeybi et al. 2019): queries, keys, values and gates by rows, what brings them together by
columns, so that a layer talks twice. Parameters keep their names.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel.style import ParallelStyle

from puna.train.model.module import Llama

_ROWS, _COLUMNS = ("wq", "wk", "wv", "w1", "w3"), ("wo", "w2")


def parallelize(model: Llama, mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> None:
    """Spread the model in place; gathered parameters are in `dtype`, reductions in float32."""
    if mesh["tensor"].size() > 1:
        _split(model, mesh["tensor"])
    # ranks of one context have the same parameters, so that they share them out as well
    shard = mesh["shard", "context"]._flatten("sharded")
    batch = mesh["replicate", "sharded"] if mesh["replicate"].size() > 1 else shard
    if batch.size() == 1:
        return
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, mesh=batch, mp_policy=precision)
    fully_shard(model, mesh=batch, mp_policy=precision)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # the loss is divided by the labels of all ranks already: gradients are summed, not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _split(model: Llama, mesh: DeviceMesh) -> None:
    for layer in model.layers:
        plan: dict[str, ParallelStyle] = {part: ColwiseParallel() for part in _ROWS}
        plan |= {part: RowwiseParallel() for part in _COLUMNS}
        parallelize_module(layer, mesh, plan)
    if model.output is not None:  # a table that is tied to it stays whole on every rank
        whole = ColwiseParallel(output_layouts=Replicate())
        parallelize_module(model, mesh, {"output": whole})
        rows = RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
        parallelize_module(model, mesh, {"tok_embeddings": rows})
