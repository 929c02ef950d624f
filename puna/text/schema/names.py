"""Keywords about which properties and items there are, in words of those that grammars know.

propertyNames becomes patternProperties, unevaluatedProperties becomes additionalProperties, numbers of
properties become lists of those required and those absent, contains says what comes first. All of it allows
what the keyword does or less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

from puna.text.schema.document import Document
from puna.text.schema.formats import PATTERNS

_MOST_CHOICES = 64  # ways to choose properties
_DEEPEST = 8


def contained(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """For `contains`: the first item does it. None where that is not all that is asked for."""
    if node.get("minContains", 1) != 1 or "maxContains" in node:
        return None
    return {"prefixItems": [node["contains"]], "minItems": 1}


def with_names(document: Document, node: dict[str, Any], wanted: Any) -> dict[str, Any] | None:
    """A node without its propertyNames, which are `wanted`; None where that cannot be said."""
    pattern, names = _names(document, wanted)
    if pattern is None and names is None:
        return None
    known = dict(node)
    named = node.get("properties")
    named = named if isinstance(named, Mapping) else {}
    other = node.get("additionalProperties", True)
    if node.get("patternProperties"):  # which would have to be disjoint from the pattern
        return None
    if names is not None:
        kept = {name: part for name, part in named.items() if name in names}
        known["properties"] = {**kept, **{name: other for name in names if name not in named}}
    elif pattern is not None:
        known["properties"] = {name: part for name, part in named.items() if re.search(pattern, name)}
        if other is not False:
            known["patternProperties"] = {pattern: other}
    return {**known, "additionalProperties": False}


def _names(document: Document, wanted: Any, depth: int = 0) -> tuple[str | None, list[str] | None]:
    """What names have to match, or all names."""
    if not isinstance(wanted, Mapping) or depth > _DEEPEST:
        return None, None
    known = {key: value for key, value in document.keywords(wanted).items() if key in _ABOUT_NAMES}
    if known.get("type", "string") != "string":
        return None, None
    known.pop("type", None)
    if len(known) == 1 and "$ref" in known:
        return _names(document, document.target(wanted, "$ref"), depth + 1)
    values = known.get("enum", [known["const"]] if "const" in known else None)
    if isinstance(values, list | tuple):
        return None, [name for name in values if isinstance(name, str)] if len(known) == 1 else None
    if len(known) == 1 and isinstance(known.get("pattern"), str):
        return (known["pattern"], None) if _is_pattern(known["pattern"]) else (None, None)
    if len(known) == 1 and known.get("format") in PATTERNS:
        return PATTERNS[known["format"]], None
    if known and set(known) <= {"minLength", "maxLength"}:
        least, most = known.get("minLength", 0), known.get("maxLength", "")
        return rf"^(?s:.){{{least},{most}}}$", None
    return None, None


_ABOUT_NAMES = frozenset((
    "type", "$ref", "enum", "const", "pattern", "format", "minLength", "maxLength", "anyOf", "oneOf", "allOf",
    "not", "if", "then", "else",
))  # fmt: skip


def _is_pattern(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return len(pattern) < 200


def with_evaluated(document: Document, node: Mapping[str, Any]) -> dict[str, Any]:
    """A node with additionalProperties in place of its unevaluatedProperties.

    Properties that it names anywhere count as evaluated where they are named for certain, and are listed.
    """
    rest = node["unevaluatedProperties"]
    named = dict(node["properties"]) if isinstance(node.get("properties"), Mapping) else {}
    for name in _named(document, node):
        named.setdefault(name, True)
    known = {key: value for key, value in node.items() if key != "unevaluatedProperties"}
    if "additionalProperties" in known:
        return known  # evaluates all
    return {**known, "properties": named, "additionalProperties": rest}


def _named(document: Document, node: Any, depth: int = 0) -> Iterator[str]:
    """Names that `properties` have in what a value has to fulfil in any case."""
    if not isinstance(node, Mapping) or depth > _DEEPEST:
        return
    known = document.keywords(node)
    if isinstance(known.get("properties"), Mapping):
        yield from known["properties"]
    if isinstance(known.get("$ref"), str):
        yield from _named(document, document.target(node, "$ref"), depth + 1)
    if isinstance(known.get("allOf"), list | tuple):
        for part in known["allOf"]:
            yield from _named(document, part, depth + 1)


def counted(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """A node whose numbers of properties are said by names, where it names some that may be left out.

    None where there would be too many ways to choose them.
    """
    named = node.get("properties")
    named = list(named) if isinstance(named, Mapping) else []
    required = _required(node)
    free = [name for name in named if name not in required]
    least, most = node.get("minProperties"), node.get("maxProperties")
    known = {key: value for key, value in node.items() if key not in ("minProperties", "maxProperties")}
    if isinstance(least, int) and least > len(required):
        if not free:
            return {**known, **_limits(least if least <= 1 else None, most)} if least <= 1 else None
        known = _at_least(known, free, least - len(required))
        if known == {}:
            return None
    if not isinstance(most, int):
        return known
    others = node.get("additionalProperties", True) is not False or node.get("patternProperties")
    if not free:
        return {**known, "maxProperties": most}
    if not others and len(named) <= most:
        return known
    return _at_most(known, free, most - len(required)) or None


def _limits(least: int | None, most: Any) -> dict[str, Any]:
    return {
        key: value for key, value in (("minProperties", least), ("maxProperties", most)) if value is not None
    }


def _required(node: Mapping[str, Any]) -> list[str]:
    found = node.get("required")
    return list(dict.fromkeys(map(str, found))) if isinstance(found, list | tuple) else []


def _at_least(known: dict[str, Any], free: Sequence[str], n: int) -> dict[str, Any]:
    """Some `n` of the free properties are there."""
    if n > len(free) or comb(len(free), n) > _MOST_CHOICES:
        return {}
    choices = [{"required": list(chosen)} for chosen in combinations(free, n)]
    return _with(known, choices)


def _at_most(known: dict[str, Any], free: Sequence[str], n: int) -> dict[str, Any]:
    """No others than those named are there, and all but `n` of the free ones are absent."""
    if n < 0 or (n < len(free) and comb(len(free), n) > _MOST_CHOICES):
        return {}
    closed = {key: value for key, value in known.items() if key != "patternProperties"}
    closed["additionalProperties"] = False
    if n >= len(free):
        return closed
    choices: list[dict[str, Any]] = [
        {"properties": {name: False for name in free if name not in chosen}}
        for chosen in combinations(free, n)
    ]
    return _with(closed, choices)


def _with(known: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {**known, "allOf": [*known.get("allOf", []), {"anyOf": choices}]}
