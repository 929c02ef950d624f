"""Record model/block.py into a plan: a list of coarse ops over numbered values, for any number of tokens.

A plan is data. passes.py rewrites it, native.py hands it to the C++ executor. Nothing here multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from puna.model.block import decoder
from puna.model.config import ModelConfig
from puna.model.names import assemble
from puna.model.rope import RopeTable

Rows = Literal["all", "wanted"]


@dataclass(frozen=True, slots=True)
class WeightRef:
    """A weight by name; its numbers stay in the checkpoint."""

    name: str
    kind: str  # tensor type of the file, such as "Q4_K"
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """An activation [rows, cols]: one row per token of the step, or per token whose logits are wanted."""

    id: int
    cols: int
    rows: Rows = "all"


@dataclass(frozen=True, slots=True)
class Node:
    """One op. Which attributes it has, each op says in `Recorder` (or in the pass that makes it)."""

    op: str
    ins: tuple[Value, ...]
    outs: tuple[Value, ...]
    weights: tuple[WeightRef, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    nodes: tuple[Node, ...]
    result: Value
    n_values: int  # ids are below this

    def consumers(self, value: Value) -> list[int]:
        """Indices of the nodes that read `value`."""
        return [i for i, node in enumerate(self.nodes) if value in node.ins]

    def producer(self, value: Value) -> int:
        """Index of the node that writes `value`."""
        return next(i for i, node in enumerate(self.nodes) if value in node.outs)

    def with_nodes(self, nodes: Sequence[Node]) -> Plan:
        return replace(self, nodes=tuple(nodes))


class Recorder:
    """ops/table.py, writing down instead of computing. Weights are WeightRefs."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.n_values = 0

    def _value(self, cols: int, rows: Rows) -> Value:
        self.n_values += 1
        return Value(self.n_values - 1, cols, rows)

    def _node(
        self,
        op: str,
        ins: tuple[Value, ...],
        cols: int,
        *weights: WeightRef,
        rows: Rows | None = None,
        **attrs: Any,
    ) -> Value:
        out = self._value(cols, rows or (ins[0].rows if ins else "all"))
        self.nodes.append(Node(op, ins, (out,), weights, attrs))
        return out

    def embed(self, w_VD: WeightRef, more_MD: WeightRef | None = None) -> Value:
        weights = (w_VD,) if more_MD is None else (w_VD, more_MD)
        return self._node("embed", (), w_VD.shape[1], *weights)

    def linear(self, x_TD: Value, w_ED: WeightRef) -> Value:
        return self._node("linear", (x_TD,), w_ED.shape[0], w_ED)

    def add(self, a_TD: Value, b_TD: Value, gate_1: WeightRef | None = None) -> Value:
        if gate_1 is not None:
            return self._node("add_gated", (a_TD, b_TD), a_TD.cols, gate_1)
        return self._node("add", (a_TD, b_TD), a_TD.cols)

    def rms_norm(self, x_TD: Value, w_D: WeightRef, eps: float) -> Value:
        return self._node("rms_norm", (x_TD,), x_TD.cols, w_D, eps=eps)

    def rope(self, x_THC: Value, n_heads: int, freqs_C2: Any) -> Value:
        return self._node("rope", (x_THC,), x_THC.cols, n_heads=n_heads, table=freqs_C2)

    def head_norm(self, x_THC: Value, head_dim: int, eps: float, w_C: WeightRef | None = None) -> Value:
        if w_C is not None:
            return self._node("weighted_head_norm", (x_THC,), x_THC.cols, w_C, eps=eps)
        return self._node("head_norm", (x_THC,), x_THC.cols, head_dim=head_dim, eps=eps)

    def temper(self, q_THC: Value, temperature: Any) -> Value:
        return self._node("temper", (q_THC,), q_THC.cols, temperature=temperature)

    def attend(
        self,
        q_THC: Value,
        k_TKC: Value,
        v_TKC: Value,
        layer: int,
        head_dim: int,
        scale: float,
        chunk: int | None = None,
    ) -> Value:
        attrs: dict[str, Any] = {
            "layer": layer,
            "n_heads": q_THC.cols // head_dim,
            "head_dim": head_dim,
            "scale": scale,
            "chunk": chunk,
        }
        return self._node("attend", (q_THC, k_TKC, v_TKC), q_THC.cols, **attrs)

    def cross_attend(self, q_THC: Value, layer: int, head_dim: int, scale: float) -> Value:
        attrs: dict[str, Any] = {"layer": layer, "n_heads": q_THC.cols // head_dim, "scale": scale}
        return self._node("cross_attend", (q_THC,), q_THC.cols, **attrs)

    def mask_rows(self, x_TD: Value) -> Value:
        return self._node("mask_rows", (x_TD,), x_TD.cols)

    def swiglu(self, gate_TF: Value, up_TF: Value) -> Value:
        return self._node("swiglu", (gate_TF, up_TF), gate_TF.cols)

    def hadamard(self, x_TF: Value) -> Value:
        return self._node("hadamard", (x_TF,), x_TF.cols)

    def experts(
        self,
        x_TD: Value,
        router_ED: WeightRef,
        w1_EFD: WeightRef,
        w2_EDF: WeightRef,
        w3_EFD: WeightRef,
        n_active: int,
    ) -> Value:
        weights = (router_ED, w1_EFD, w2_EDF, w3_EFD)
        return self._node("experts", (x_TD,), x_TD.cols, *weights, n_active=n_active)

    def select(self, x_TD: Value) -> Value:
        return self._node("select", (x_TD,), x_TD.cols, rows="wanted")


def record(
    cfg: ModelConfig, weights: Mapping[str, WeightRef], rope: RopeTable, with_images: bool = False
) -> Plan:
    """The plan of a decoder from its weights by our names; see block.decoder for `with_images`."""
    ops = Recorder()
    result = decoder(ops, cfg, assemble(cfg, weights, rope), with_images)
    return Plan(tuple(ops.nodes), result, ops.n_values)
