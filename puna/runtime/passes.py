"""Fusions: each pass takes a plan and returns an equivalent one that touches memory less often.

The order matters and stands in `fuse`. No pass changes a number: the C++ executor performs the same
operations in the same order as the unfused plan.
"""

from __future__ import annotations

from dataclasses import replace

from puna.runtime.plan import Node, Plan, Value

# Ops that treat every row alike: they may as well run on the wanted rows only.
_ROWWISE = {"linear", "add", "rms_norm", "swiglu"}


def fuse(plan: Plan) -> Plan:
    for rewrite in (select_early, add_to_linear, gate, group_linears, rope_into_attend):
        plan = rewrite(plan)
    return plan


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


def add_to_linear(plan: Plan) -> Plan:
    """add(x, linear(h)) -> linear(h) that starts from x."""
    nodes = dict(enumerate(plan.nodes))
    for i, node in enumerate(plan.nodes):
        if node.op != "add":
            continue
        x, y = node.ins
        maker = plan.producer(y)
        if plan.nodes[maker].op == "linear" and plan.consumers(y) == [i]:
            nodes[i] = replace(plan.nodes[maker], ins=(*plan.nodes[maker].ins, x), outs=node.outs)
            del nodes[maker]
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


def rope_into_attend(plan: Plan) -> Plan:
    """rope(q), rope(k), attend -> rope_store (in place, appends to the cache) and attend (reads it)."""
    ropes = {node.outs[0]: node for node in plan.nodes if node.op == "rope"}
    nodes: list[Node] = []
    for node in plan.nodes:
        if node.op == "attend":
            q, k, v = node.ins
            raw = (ropes[q].ins[0], ropes[k].ins[0], v)
            nodes.append(Node("rope_store", raw, (), attrs={"layer": node.attrs["layer"]}))
            nodes.append(replace(node, ins=raw[:1]))
        elif node.op != "rope":
            nodes.append(node)
    return plan.with_nodes(nodes)


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
