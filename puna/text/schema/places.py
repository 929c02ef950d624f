"""Which lists in a JSON text must have every item once, found while the text grows.

A place is what a schema says of one value in a text: all schemas that could be looked at there, whichever
choices it makes. So a list counts as unique where any of them says so; more lists may then be held to it than
need be, and none less. Works on what json_schema.prepared wrote: references lead to # or #/$defs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

_MOST_TEXTS = 512  # items of which a list may be made up
_DEEPEST = 8
# Where schemas are in a schema that was written anew.
_NAMED = ("properties", "patternProperties", "$defs")
_LISTED = ("allOf", "anyOf", "prefixItems")
_ONE = ("items", "additionalProperties")


class Places:
    """The places of one schema, remembered by the schemas that they are."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[tuple[int, ...], Place] = {}
        self.root = self.of([root])

    def of(self, nodes: Iterable[Any]) -> Place:
        """The place where a value has to fulfil some of these."""
        found: dict[int, Mapping[str, Any]] = {}
        for node in nodes:
            self._spread(node, found)
        key = tuple(sorted(found))
        if key not in self._known:
            self._known[key] = Place(self, list(found.values()))
        return self._known[key]

    def _spread(self, node: Any, found: dict[int, Mapping[str, Any]]) -> None:
        """Note a schema and all that it takes in at the same place."""
        pending = [node]
        while pending:
            node = pending.pop()
            if not isinstance(node, Mapping) or id(node) in found:
                continue
            found[id(node)] = node
            if "$ref" in node:
                pending.append(self.target(node["$ref"]))
            for key in ("allOf", "anyOf"):
                pending += node.get(key, ())

    def target(self, reference: str) -> Any:
        return self._root if reference == "#" else self._root["$defs"][unquote(reference.rpartition("/")[2])]

    def texts(self, node: Any, depth: int = 0) -> list[str] | None:
        """All values that a schema allows, as JSON has them; None where they are not a few that it lists."""
        if not isinstance(node, Mapping) or depth > _DEEPEST:
            return None
        if "const" in node or "enum" in node:
            values = [node["const"]] if "const" in node else node["enum"]
            simple = [v for v in values if isinstance(v, str | bool | int) or v is None]
            is_whole = len(simple) == len(values) <= _MOST_TEXTS
            return [json.dumps(value, ensure_ascii=False) for value in simple] if is_whole else None
        if node.get("type") == "boolean":
            return ["true", "false"]
        if node.get("type") == "integer" and (found := _few_integers(node)) is not None:
            return found
        if node.get("type") == "null":
            return ["null"]
        if "$ref" in node:
            return self.texts(self.target(node["$ref"]), depth + 1)
        for part in node.get("allOf", ()):
            found = self.texts(part, depth + 1)
            if found is not None:
                return found
        if "anyOf" in node:
            parts = [self.texts(part, depth + 1) for part in node["anyOf"]]
            listed = [text for part in parts if part is not None for text in part]
            return listed if all(part is not None for part in parts) else None
        return None


class Place:
    """What may be said of one value. `texts` are the items of a unique list, where they are listed."""

    def __init__(self, places: Places, nodes: list[Mapping[str, Any]]) -> None:
        self._places = places
        self._nodes = nodes
        self._children: dict[str | int, Place] = {}
        self.is_unique = any(node.get("uniqueItems") is True for node in nodes)
        self.texts = self._texts() if self.is_unique else None
        self.has_fractions = any(node.get("type") != "integer" for node in nodes)  # its values may go on

    def _texts(self) -> frozenset[str] | None:
        found: set[str] = set()
        for node in self._nodes:
            if "items" in node or "prefixItems" in node:
                listed = None if "prefixItems" in node else self._places.texts(node["items"])
                if listed is None:
                    return None
                found.update(listed)
        return frozenset(found) or None

    def property(self, name: str) -> Place:
        if name not in self._children:
            self._children[name] = self._places.of(self._of_property(name))
        return self._children[name]

    def _of_property(self, name: str) -> Iterator[Any]:
        for node in self._nodes:
            named = node.get("properties", {})
            if name in named:
                yield named[name]
            for pattern, part in node.get("patternProperties", {}).items():
                if _may_match(pattern, name):
                    yield part
            if name not in named and "additionalProperties" in node:
                yield node["additionalProperties"]

    def item(self, index: int) -> Place:
        """The place of an item; all behind those that a schema lists are one."""
        listed = [node.get("prefixItems", ()) for node in self._nodes]
        key = min(index, max(map(len, listed), default=0))
        if key not in self._children:
            parts = [part for items in listed for part in items[key : key + 1]]
            rest = [node["items"] for node in self._nodes if "items" in node]
            self._children[key] = self._places.of([*parts, *rest])
        return self._children[key]


def without_unique(places: Places, node: Any) -> Any:
    """A schema for a grammar, which cannot hold lists to being unique; those of a few items are as short."""
    if not isinstance(node, dict):
        return node
    made: dict[str, Any] = {}
    for key, value in node.items():
        if key in _NAMED:
            made[key] = {name: without_unique(places, part) for name, part in value.items()}
        elif key in _LISTED:
            made[key] = [without_unique(places, part) for part in value]
        elif key in _ONE:
            made[key] = without_unique(places, value)
        elif key != "uniqueItems":
            made[key] = value
    if "uniqueItems" in node and "prefixItems" not in node:
        texts = places.texts(node.get("items"))
        if texts is not None:
            made["maxItems"] = min(len(set(texts)), node.get("maxItems", len(texts)))
    return made


def has_unique(node: Any) -> bool:
    """Whether a schema has a list whose items must differ."""
    pending = [node]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict):
            continue
        if "uniqueItems" in node:
            return True
        pending += [part for key in _NAMED for part in node.get(key, {}).values()]
        pending += [part for key in _LISTED for part in node.get(key, ())]
        pending += [node[key] for key in _ONE if key in node]
    return False


def _few_integers(node: Mapping[str, Any]) -> list[str] | None:
    """All whole numbers between two limits, or more than there are where they are to be multiples."""
    low = node.get("minimum", node.get("exclusiveMinimum"))
    high = node.get("maximum", node.get("exclusiveMaximum"))
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in (low, high)):
        return None
    if high - low >= _MOST_TEXTS or "multipleOf" in node:
        return None
    first, last = low + ("minimum" not in node), high - ("maximum" not in node)
    return [str(n) for n in range(first, last + 1)]


def _may_match(pattern: str, name: str) -> bool:
    """Patterns are those of another library: where this one does not know better, they match."""
    if len(name) > 64:
        return True
    try:
        return re.search(pattern, name) is not None
    except (re.error, RecursionError, OverflowError):
        return True
