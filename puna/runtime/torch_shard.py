"""What one of several ranks holds of a model: heads, columns and rows of matrices, a part of the vocabulary.

Every layer is split so that its ranks meet twice: after attention and after the feed-forward network, to add
up what each has computed of its output (Shoeybi et al. 2019, Megatron-LM). Experts are split like any other
feed-forward network: every rank has a part of each.

Shapes: T tokens, E outputs, D inputs, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.core import BadValue
from puna.model.config import ModelConfig
from puna.ops.torch_ops import TorchOps
from puna.ops.torch_weights import LinearWeight, linear, lookup
from puna.weights.blocks.formats import FORMATS
from puna.weights.blocks.quant import dequantize
from puna.weights.blocks.tensor import RawTensor

# The axis along which ranks share out a tensor, counted from its last; what is not here is whole in each.
_AXIS = {
    "wq": -2, "wk": -2, "wv": -2, "wo": -1, "w1": -2, "w2": -1, "w3": -2, "experts_w1": -2, "experts_w2": -1,
    "experts_w3": -2, "shared_w1": -2, "shared_w2": -1, "shared_w3": -2, "tok_embeddings": -2, "output": -2,
}  # fmt: skip
_SUMMED = ("wo", "w2", "shared_w2")  # experts_w2 after its last expert
_VOCABULARY = ("tok_embeddings", "output")


class Ranks(Protocol):
    """How ranks meet."""

    rank: int
    size: int

    def add_up(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in the place of x."""
        ...

    def gather(self, x: Tensor) -> list[Tensor]:
        """The tensors of all ranks, on rank 0; elsewhere its own only."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SummedWeight(LinearWeight):
    """Some columns of a matrix: products of all ranks add up."""

    inner: Any
    ranks: Ranks

    def linear(self, x_TD: Tensor) -> Tensor:
        return self.ranks.add_up(linear(x_TD, self.inner))


@dataclass(frozen=True, slots=True, eq=False)
class VocabularyWeight(LinearWeight):
    """Some rows of the table of embeddings or of the output head; those that pad it are zeros."""

    inner: Any
    n_rows: int  # of this rank
    vocab_size: int
    ranks: Ranks

    def linear(self, x_TD: Tensor) -> Tensor:
        """Logits of the whole vocabulary on rank 0; elsewhere those of its own part."""
        return torch.cat(self.ranks.gather(linear(x_TD, self.inner)), dim=-1)[:, : self.vocab_size]

    def rows(self, ids_T: Tensor, dtype: torch.dtype) -> Tensor:
        own_T = ids_T - self.ranks.rank * self.n_rows
        is_here_T = (own_T >= 0) & (own_T < self.n_rows)
        x_TD = lookup(self.inner, own_T.clamp(0, self.n_rows - 1), dtype)
        return self.ranks.add_up(torch.where(is_here_T[:, None], x_TD, torch.zeros_like(x_TD)))


class ShardedOps(TorchOps):
    """Ops of one rank: experts add up once, not each."""

    ranks: Ranks

    def experts(self, *args: Any) -> Tensor:
        return self.ranks.add_up(super().experts(*args))


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part. Raises BadValue for a model that so many ranks cannot share."""

    ranks: Ranks
    cfg: ModelConfig  # the whole model's

    def __post_init__(self) -> None:
        check_ranks(self.cfg, self.ranks.size)

    @property
    def config(self) -> ModelConfig:
        """The model that this rank seems to run: fewer heads."""
        n = self.ranks.size
        n_kv_heads = max(1, self.cfg.n_kv_heads // n)
        return replace(self.cfg, n_heads=self.cfg.n_heads // n, n_kv_heads=n_kv_heads)

    def cut(self, tensor: RawTensor) -> RawTensor:
        """The part of a tensor that this rank holds."""
        part = tensor.name.rpartition(".")[2]
        if part not in _AXIS:
            return tensor
        rank, size = self.ranks.rank, self.ranks.size
        if part in ("wk", "wv"):  # ranks that share a head each have all of it
            size = min(size, self.cfg.n_kv_heads)
            rank = rank * size // self.ranks.size
        if part in _VOCABULARY:
            return _padded_rows(tensor, rank, size)
        return _cut(tensor, _AXIS[part], rank, size)

    def kind(self, name: str, weight: Any) -> Any:
        """The kind of weight that `linear` has to know a part as."""
        part = name.rpartition(".")[2]
        if part in _VOCABULARY:
            n_rows = -(-self.cfg.vocab_size // self.ranks.size)
            return VocabularyWeight(weight, n_rows, self.cfg.vocab_size, self.ranks)
        return SummedWeight(weight, self.ranks) if part in _SUMMED else weight


def check_ranks(cfg: ModelConfig, n: int) -> None:
    """Raise BadValue unless `n` ranks can share the model."""
    if cfg.vision is not None or cfg.cross_attention:
        raise BadValue(
            f"tensor_parallel shares out text models only, got {n} for one with images; leave it out"
        )
    if cfg.lora_rank or cfg.ffn_hadamard:
        raise BadValue(
            f"tensor_parallel shares out plain matrices only, got {n} for a model with adapters or a "
            "Hadamard transform; leave it out, or convert the model first"
        )
    problem = _unshared(cfg, n)
    if problem:
        fits = [str(k) for k in range(2, 9) if not _unshared(cfg, k)]
        remedy = f"use {' or '.join(fits)}" if fits else "leave it out"
        raise BadValue(f"tensor_parallel must divide the {problem} of this model, got {n}; {remedy}")


def _unshared(cfg: ModelConfig, n: int) -> str:
    """What `n` ranks cannot share out, or ""; several ranks may have the same key/value head."""
    widths = {"heads": cfg.n_heads}
    if n % cfg.n_kv_heads:
        widths["key/value heads"] = cfg.n_kv_heads
    if any(not cfg.has_experts(i) for i in range(cfg.n_layers)):
        widths["feed-forward columns"] = cfg.ffn_dim
    if cfg.experts is not None:
        widths["columns of an expert"] = cfg.experts.expert_ffn_dim
        widths["columns of the shared expert"] = cfg.experts.shared_ffn_dim
    return next((f"{width:,} {what}" for what, width in widths.items() if width % n), "")


def _cut(tensor: RawTensor, axis: int, rank: int, size: int) -> RawTensor:
    """Rows, or columns in whole blocks, as the file has them; other columns as floats."""
    width = tensor.shape[axis] // size
    shape = tuple(width if i - len(tensor.shape) == axis else n for i, n in enumerate(tensor.shape))
    fmt = FORMATS[tensor.kind]
    if axis == -1 and width % fmt.block_len:
        return RawTensor(
            tensor.name, "F32", shape, partial(_float_columns, tensor, rank, width), tensor.release
        )

    def data() -> NDArray[np.uint8]:
        blocks = tensor.data().reshape(*tensor.shape[:-1], -1, fmt.block_bytes)
        n = width if axis == -2 else width // fmt.block_len
        chosen = [slice(None)] * blocks.ndim
        chosen[axis - 1] = slice(rank * n, (rank + 1) * n)
        return np.ascontiguousarray(blocks[tuple(chosen)]).reshape(-1)

    return replace(tensor, shape=shape, data=data)


def _float_columns(tensor: RawTensor, rank: int, width: int) -> NDArray[np.uint8]:
    values = dequantize(tensor.data(), tensor.kind, tensor.shape)[..., rank * width : (rank + 1) * width]
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1)


def _padded_rows(tensor: RawTensor, rank: int, size: int) -> RawTensor:
    """The vocabulary is of any length: the last rank's rows end in zeros, which are zeros in every format."""
    n_rows = -(-tensor.shape[0] // size)
    shape = (n_rows, *tensor.shape[1:])

    def data() -> NDArray[np.uint8]:
        rows = tensor.data().reshape(tensor.shape[0], -1)[rank * n_rows : (rank + 1) * n_rows]
        whole = np.zeros((n_rows, rows.shape[1]), np.uint8)
        whole[: len(rows)] = rows
        return whole.reshape(-1)

    return replace(tensor, shape=shape, data=data)
