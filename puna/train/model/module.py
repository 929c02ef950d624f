"""A Llama as a tree of modules: parameters under the names of model/names.py, computed by model/block.py.

Parallelism, compilation and recomputation are applied to this tree from outside (train/parallel/): it says
what is computed, on one device.

Shapes: T tokens, D model width, E output width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.core import BadFile, Unsupported
from puna.model import names
from puna.model.block import ExpertWeights, LayerWeights, decoder_layer
from puna.model.config import ModelConfig
from puna.model.rope import RopeTable, rope_table
from puna.train.model.loss import Sums, cross_entropy
from puna.train.model.ops import TrainOps
from puna.train.model.rows import Rows

_WEIGHT = ".weight"  # of modules that hold one matrix: names of checkpoints lack it


class Matrix(nn.Linear):
    """x @ w.T, without bias: a module of its own, for whoever splits, quantizes or adapts it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        n_out, n_in = shape
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return F.linear(x_TD, self.weight.to(x_TD.dtype))


class Layer(nn.Module):
    """One decoder layer; its parameters are the fields of block.LayerWeights."""

    def __init__(self, cfg: ModelConfig, number: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self._cfg = cfg
        self.number = number
        for part, shape in shapes.items():
            # vectors and stacks of experts are what ops take as they are
            made = Matrix(shape) if len(shape) == 2 else nn.Parameter(torch.empty(shape))
            self.register_module(part, made) if isinstance(made, Matrix) else self.register_parameter(
                part, made
            )
        self._parts = tuple(shapes)

    def forward(self, x_TD: Tensor, ops: TrainOps, rope: RopeTable) -> Tensor:
        y_TD: Tensor = decoder_layer(ops, self._cfg, self._weights(), self.number, rope, x_TD)
        return y_TD

    def _weights(self) -> LayerWeights:
        parts = {part: getattr(self, part) for part in self._parts}
        of_experts = {
            part: parts.pop(part) for part in [*parts] if part in ExpertWeights.__dataclass_fields__
        }
        return LayerWeights(**parts, experts=ExpertWeights(**of_experts) if of_experts else None)


class Llama(nn.Module):
    """Text decoders of every generation. Raises Unsupported for what is not trained here."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        if cfg.vision is not None or cfg.cross_attention or cfg.lora_rank or cfg.ffn_hadamard:
            raise Unsupported("only plain text decoders are trained; take one without images and rotations")
        self.cfg = cfg
        self.rope = rope_table(cfg)
        shapes = dict(names.shapes(cfg))
        self.tok_embeddings = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.layers = nn.ModuleList(Layer(cfg, i, _of_layer(shapes, i)) for i in range(cfg.n_layers))
        self.norm = nn.Parameter(torch.empty(shapes["norm"]))
        self.output = None if cfg.tied else Matrix(shapes["output"])

    def forward(self, rows: Rows, labels_T: Tensor, dtype: torch.dtype = torch.float32) -> Sums:
        """The loss of the labels, activations in `dtype`. All that reads parameters happens in here: whoever
        shards the model gathers them around this call."""
        return cross_entropy(self.hidden(rows, dtype), labels_T, self.logits)

    def hidden(self, rows: Rows, dtype: torch.dtype = torch.float32) -> Tensor:
        """The last layer's outputs after the final norm [T, D]."""
        ops = TrainOps(rows, dtype)
        x_TD = ops.embed(self.tok_embeddings)
        for layer in self.layers:
            x_TD = layer(x_TD, ops, self.rope)
        return ops.rms_norm(x_TD, self.norm, self.cfg.norm_eps)

    def logits(self, x_TD: Tensor) -> Tensor:
        """[T, V] of what hidden() gives."""
        if self.output is None:
            return F.linear(x_TD, self.tok_embeddings.weight.to(x_TD.dtype))
        y_TV: Tensor = self.output(x_TD)
        return y_TV

    def tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under the names of checkpoints, in their order."""
        for name, parameter in self.named_parameters():
            yield name.removesuffix(_WEIGHT), parameter

    @torch.no_grad()
    def load(self, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take the values of a checkpoint, by our names. Raises BadFile for one of another shape."""
        names.check_shapes(self.cfg, {name: tensor.shape for name, tensor in tensors.items()})
        for name, parameter in self.tensors():
            if name not in tensors:
                raise BadFile(f"the checkpoint lacks {name}")
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(tensors[name])))


def _of_layer(shapes: Mapping[str, tuple[int, ...]], i: int) -> dict[str, tuple[int, ...]]:
    prefix = f"layers.{i}."
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
