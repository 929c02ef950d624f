"""Numbers that every reader of JSON has, in a schema that was written anew (json_schema.prepared).

1e999 is JSON, but infinite to its reader, and beyond 2**53 readers round. So all numbers get limits that have
none, also in values of which a schema says nothing: these refer to one definition of any value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_LARGEST_INTEGER = 2**53 - 1  # RFC 8259: what readers of JSON agree on
_LARGEST_NUMBER = 1e15
_ANY = "any value"
_REFERENCE = {"$ref": f"#/$defs/{_ANY.replace(' ', '%20')}"}
_VALUE: dict[str, Any] = {
    "anyOf": [
        {"type": ["null", "boolean", "string"]},
        {"type": "number", "minimum": -_LARGEST_NUMBER, "maximum": _LARGEST_NUMBER},
        {"type": "array", "items": _REFERENCE},
        {"type": "object", "additionalProperties": _REFERENCE},
    ]
}
_NAMED = ("properties", "patternProperties", "$defs")
_LISTED = ("allOf", "anyOf", "prefixItems")
_ONE = ("items", "additionalProperties")


def bounded(schema: Any) -> dict[str, Any]:
    """The schema with limits for all numbers that it allows.

    Where a value has to fulfil several parts of it at once, parts that say nothing stay so: the compiler
    cannot intersect what refers to itself, as any value does.
    """
    is_single = not _intersects(schema)
    made = _bounded(schema, is_single)
    if made is False:
        return {"allOf": [False]}
    if made is True:
        return {}
    definitions = {**made.get("$defs", {}), **({_ANY: _VALUE} if is_single else {})}
    return {**made, **({"$defs": definitions} if definitions else {})}


def _intersects(node: Any) -> bool:
    if not isinstance(node, Mapping):
        return False
    others = node.keys() - {"$defs", "$ref"}
    if "allOf" in node or ("$ref" in node and others) or ("anyOf" in node and others - {"anyOf"}):
        return True
    return any(map(_intersects, _parts(node)))


def _parts(node: Mapping[str, Any]) -> Iterator[Any]:
    for key in _NAMED:
        yield from node.get(key, {}).values()
    for key in _LISTED:
        yield from node.get(key, ())
    for key in _ONE:
        yield node.get(key)


def _bounded(node: Any, is_single: bool) -> Any:
    if is_single and (node is True or node == {}):
        return dict(_REFERENCE)
    if not isinstance(node, Mapping):
        return node
    made = dict(node)
    for key in _NAMED:
        if key in node:
            made[key] = {name: _bounded(part, is_single) for name, part in node[key].items()}
    for key in _LISTED:
        if key in node:
            made[key] = [_bounded(part, is_single) for part in node[key]]
    for key in _ONE:
        if key in node:
            made[key] = _bounded(node[key], is_single)
    if any(key in node for key in ("enum", "const", "$ref", "anyOf", "allOf")):
        return made  # these are bounded, and so is what has to fulfil them too
    named = node.get("type", ["number", "array", "object"])
    types = {named} if isinstance(named, str) else set(named)
    if types & {"number", "integer"}:
        made |= _limits(node, _LARGEST_NUMBER if "number" in types else _LARGEST_INTEGER)
    if is_single and "array" in types:
        made.setdefault("items", dict(_REFERENCE))
    if is_single and "object" in types:
        made.setdefault("additionalProperties", dict(_REFERENCE))
    return made


def _limits(node: Mapping[str, Any], largest: float) -> dict[str, float]:
    """Those that a node has not."""
    made = {}
    if "minimum" not in node and "exclusiveMinimum" not in node:
        made["minimum"] = min(-largest, _limit(node, "maximum", "exclusiveMaximum"))
    if "maximum" not in node and "exclusiveMaximum" not in node:
        made["maximum"] = max(largest, _limit(node, "minimum", "exclusiveMinimum"))
    return made


def _limit(node: Mapping[str, Any], *keys: str) -> float:
    """The other limit, where it is farther out: then the number is that one at most."""
    found = next((node[key] for key in keys if key in node), 0)
    return 0 if isinstance(found, bool) else found
