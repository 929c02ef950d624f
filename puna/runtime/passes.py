"""Fusions: each pass takes a plan and returns an equivalent one that touches memory less often.

The order matters and stands in `fuse`. No pass changes a number: the C++ executor performs the same
operations in the same order as the unfused plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from puna.runtime.plan import Node, Plan, Value

# Ops that treat every row alike: they may as well run on the wanted rows only.
_ROWWISE = {"linear", "add", "rms_norm", "swiglu", "hadamard", "experts"}
# What may happen to queries and keys before they meet, in the order in which `store` does it.
_BEFORE_ATTEND = ("rope", "head_norm", "temper")


def fuse(plan: Plan, sites: Mapping[str, int] | None = None) -> Plan:
    """All passes; with `sites`, for matrices that may have adapters (native_adapters.py), by their names."""
    for rewrite in (select_early, route, add_to_linear, gate, group_linears, into_store):
        if rewrite is not gate or sites is None:  # what adapters add comes before the gate
            plan = rewrite(plan)
    return plan if sites is None else at_sites(plan, sites)


def at_sites(plan: Plan, sites: Mapping[str, int]) -> Plan:
    """linear gets the sites of its matrices, -1 for those without; an op without any stays as it is."""

    def with_sites(node: Node) -> Node:
        found = [sites.get(w.name, -1) for w in node.weights]
        if node.op != "linear" or max(found) < 0:
            return node
        return replace(node, attrs={**node.attrs, "sites": found})

    return plan.with_nodes([with_sites(node) for node in plan.nodes])


def without_output(plan: Plan) -> Plan:
    """A fused plan up to what the output matrix multiplies: it ends in that."""
    (normed,) = plan.nodes[-1].ins
    assert plan.nodes[-1].op == "linear"
    assert plan.nodes[-1].outs == (plan.result,)
    return replace(plan, nodes=plan.nodes[:-1], result=normed)


def select_early(plan: Plan) -> Plan:
    """Drop rows whose logits nobody wants as soon as no later row needs them: after the last attention."""
    at = next(i for i, node in enumerate(plan.nodes) if node.op == "select")
    narrow: dict[Value, Value] = {}  # value over all rows -> the same over the wanted ones
    last_attend = max(i for i, node in enumerate(plan.nodes) if node.op == "attend")
    nodes = list(plan.nodes[:last_attend])
    n_values = plan.n_values
    for node in plan.nodes[last_attend:at]:
        assert node.op == "attend" or node.op in _ROWWISE
        (out,) = node.outs
        narrow[out] = replace(out, rows="wanted")
        ins = []
        for value in node.ins:
            if node.op != "attend" and value not in narrow:
                narrow[value] = Value(n_values, value.cols, "wanted")
                nodes.append(Node("select", (value,), (narrow[value],)))
                n_values += 1
            ins.append(value if node.op == "attend" else narrow[value])
        nodes.append(replace(node, ins=tuple(ins), outs=(narrow[out],)))
    (selected,) = plan.nodes[at].outs
    same = {selected: narrow[plan.nodes[at].ins[0]]}
    for node in plan.nodes[at + 1 :]:
        nodes.append(replace(node, ins=tuple(same.get(v, v) for v in node.ins)))
    return Plan(tuple(nodes), plan.result, n_values)


def route(plan: Plan) -> Plan:
    """experts(h, router, ...) -> linear(h, router) and experts(h, scores, ...)."""
    nodes: list[Node] = []
    n_values = plan.n_values
    for node in plan.nodes:
        if node.op != "experts":
            nodes.append(node)
            continue
        router, *matrices = node.weights
        (h,) = node.ins
        scores = Value(n_values, router.shape[0], h.rows)
        n_values += 1
        nodes.append(Node("linear", (h,), (scores,), (router,)))
        nodes.append(replace(node, ins=(h, scores), weights=tuple(matrices)))
    return Plan(tuple(nodes), plan.result, n_values)


def add_to_linear(plan: Plan) -> Plan:
    """add(x, linear(h)), or add(linear(h), x), -> linear(h) that starts from x."""
    nodes = dict(enumerate(plan.nodes))
    for i, node in enumerate(plan.nodes):
        if node.op != "add":
            continue
        for x, y in (node.ins, node.ins[::-1]):  # a sum is the same bits either way
            maker = plan.producer(y)
            if plan.nodes[maker].op == "linear" and plan.consumers(y) == [i]:
                nodes[i] = replace(plan.nodes[maker], ins=(*plan.nodes[maker].ins, x), outs=node.outs)
                del nodes[maker]
                break
    return plan.with_nodes([nodes[i] for i in sorted(nodes)])


def gate(plan: Plan) -> Plan:
    """swiglu(linear(h, w1), linear(h, w3)) -> gated(h, w1, w3), where both weights are of one kind."""
    nodes = dict(enumerate(plan.nodes))
    for i, node in enumerate(plan.nodes):
        if node.op != "swiglu":
            continue
        makers = [plan.producer(value) for value in node.ins]
        a, b = (plan.nodes[m] for m in makers)
        alone = all(plan.consumers(value) == [i] for value in node.ins)
        if alone and a.op == b.op == "linear" and a.ins == b.ins and a.weights[0].kind == b.weights[0].kind:
            nodes[i] = Node("gated", a.ins, node.outs, a.weights + b.weights)
            for m in makers:
                del nodes[m]
    return plan.with_nodes([nodes[i] for i in sorted(nodes)])


def group_linears(plan: Plan) -> Plan:
    """Linears of one input become one op, placed at the first: threads meet once for q, k and v."""
    nodes: list[Node] = []
    groups: dict[Value, int] = {}  # input -> index in nodes
    for node in plan.nodes:
        if node.op == "linear" and len(node.ins) == 1 and node.ins[0] in groups:
            first = nodes[groups[node.ins[0]]]
            merged = replace(first, outs=first.outs + node.outs, weights=first.weights + node.weights)
            nodes[groups[node.ins[0]]] = merged
            continue
        if node.op == "linear" and len(node.ins) == 1:
            groups[node.ins[0]] = len(nodes)
        nodes.append(node)
    return plan.with_nodes(nodes)


def into_store(plan: Plan) -> Plan:
    """rope, head_norm and temper of q and k, attend -> store (in place, appends to the cache), attend.

    `store` does to queries and keys whatever of the three their layer has, in the order of _BEFORE_ATTEND.
    """
    makers = {node.outs[0]: node for node in plan.nodes if node.op in _BEFORE_ATTEND}
    nodes: list[Node] = []
    for node in plan.nodes:
        if node.op == "attend":
            q, k, v = node.ins
            (q, q_steps), (k, k_steps) = _steps(q, makers), _steps(k, makers)
            assert k_steps == {op: step for op, step in q_steps.items() if op != "temper"}
            attrs = {"layer": node.attrs["layer"], **q_steps}
            nodes.append(Node("store", (q, k, v), (), attrs=attrs))
            nodes.append(replace(node, ins=(q,)))
        elif node.op not in _BEFORE_ATTEND:
            nodes.append(node)
    return plan.with_nodes(nodes)


def _steps(value: Value, makers: dict[Value, Node]) -> tuple[Value, dict[str, Any]]:
    """The value at the beginning of a chain of ops of _BEFORE_ATTEND, and the argument of each op."""
    steps: dict[str, Any] = {}
    while (node := makers.get(value)) is not None:
        argument = {"rope": "table", "head_norm": "eps", "temper": "temperature"}[node.op]
        assert node.op not in steps
        steps = {node.op: node.attrs[argument], **steps}
        (value,) = node.ins
    assert tuple(steps) == tuple(op for op in _BEFORE_ATTEND if op in steps)
    return value, steps


def assign_buffers(plan: Plan) -> tuple[list[tuple[int, str]], dict[Value, int]]:
    """Buffers (cols, rows) and the buffer of each value; a buffer is reused once its last reader is past.

    A linear that adds to its residual writes in place where nobody reads the residual later.
    """
    last_read = {value: i for i, node in enumerate(plan.nodes) for value in node.ins}
    last_read[plan.result] = len(plan.nodes)
    buffers: list[tuple[int, str]] = []
    free: list[int] = []
    home: dict[Value, int] = {}
    for i, node in enumerate(plan.nodes):
        for out in node.outs:
            if node.op == "linear" and len(node.ins) == 2 and last_read[node.ins[1]] == i:
                home[out] = home[node.ins[1]]
                continue
            fitting = [b for b in free if buffers[b] == (out.cols, out.rows)]
            if fitting:
                free.remove(fitting[0])
                home[out] = fitting[0]
            else:
                buffers.append((out.cols, out.rows))
                home[out] = len(buffers) - 1
        kept = {home[out] for out in node.outs}
        for value in set(node.ins):
            if last_read[value] == i and home[value] not in kept:
                free.append(home[value])
    return buffers, home
