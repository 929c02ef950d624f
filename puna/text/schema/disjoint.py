"""Whether no value can be valid under two schemas: proved here, or taken for not so.

Schemas are looked at type by type. Two are disjoint where no type is left that both allow; of a type that
both allow, texts and numbers are told apart by their values and limits, objects by a property that one of
them requires, arrays by their lengths and first items.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from puna.text.schema.document import Document
from puna.text.schema.negation import TYPES, _is_of

_DEEPEST = 8
_MOST_PROOFS = 20_000  # comparisons in one schema
_MOST = 64  # parts of a schema that are compared with those of the other


def are_disjoint(document: Document, first: Any, second: Any, depth: int = 0) -> bool:
    """Whether it is certain that no value is valid under both."""
    if first is False or second is False:
        return True
    document.n_proofs += 1
    if depth > _DEEPEST or document.n_proofs > _MOST_PROOFS:
        return False
    for one, other in ((first, second), (second, first)):
        for options in _choices(document, one):
            if all(are_disjoint(document, option, other, depth + 1) for option in options):
                return True
    ones, others = list(_parts(document, first)), list(_parts(document, second))
    if len(ones) * len(others) > _MOST * _MOST:
        return False
    types = _types(ones) & _types(others)
    return all(
        any(_differ(document, name, one, other, depth) for one in ones for other in others) for name in types
    )


def _choices(document: Document, node: Any) -> Iterator[list[Any]]:
    """Lists of schemas one of which a value must fulfil."""
    for part in _parts(document, node):
        for key in ("anyOf", "oneOf"):
            if isinstance(part.get(key), list | tuple):
                yield list(part[key])


def _parts(document: Document, node: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The schemas that a value has to fulfil all, with their own keywords: behind references and in allOf."""
    if not isinstance(node, Mapping) or depth > _DEEPEST:
        return
    known = document.keywords(node)
    yield known
    if isinstance(known.get("$ref"), str):
        yield from _parts(document, document.target(node, "$ref"), depth + 1)
    if isinstance(known.get("allOf"), list | tuple):
        for part in known["allOf"]:
            yield from _parts(document, part, depth + 1)


def _types(parts: list[Mapping[str, Any]]) -> set[str]:
    """Types that a value under all the parts can have; whole numbers are told from others."""
    found = {*TYPES, "integer"}
    for part in parts:
        if "type" in part:
            named = part["type"]
            allowed = {named} if isinstance(named, str) else set(named) if isinstance(named, list) else found
            found &= allowed | ({"integer"} if "number" in allowed else set())
        values = _values(part)
        if values is not None:
            found &= {name for name in (*TYPES, "integer") if any(_has_type(v, name) for v in values)}
    return found


def _has_type(value: Any, name: str) -> bool:
    if name == "integer":
        return _is_of(value, "number") and value == int(value)
    return _is_of(value, name)


def _values(part: Mapping[str, Any]) -> list[Any] | None:
    if "const" in part:
        return [part["const"]]
    return list(part["enum"]) if isinstance(part.get("enum"), list | tuple) else None


def _differ(
    document: Document, name: str, one: Mapping[str, Any], other: Mapping[str, Any], depth: int
) -> bool:
    """Whether no value of a type is valid under two parts."""
    first, second = _values(one), _values(other)
    if first is not None and second is not None:
        wanted = [repr(_plain(value)) for value in first if _has_type(value, name)]
        return not any(repr(_plain(value)) in wanted for value in second if _has_type(value, name))
    if name == "string":
        return _texts_differ(one, other, first) or _texts_differ(other, one, second)
    if name in ("number", "integer"):
        return _beyond(one, other) or _beyond(other, one)
    if name == "array":
        return _arrays_differ(document, one, other, depth) or _arrays_differ(document, other, one, depth)
    if name == "object":
        return _objects_differ(document, one, other, depth) or _objects_differ(document, other, one, depth)
    return False


def _plain(value: Any) -> Any:
    """A value in which 1 and 1.0 look the same; true does not."""
    if isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return sorted((str(key), repr(_plain(item))) for key, item in value.items())
    return value


def _number(part: Mapping[str, Any], key: str) -> float | None:
    value = part.get(key)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def _exceeds(one: Mapping[str, Any], least: str, other: Mapping[str, Any], most: str) -> bool:
    low, high = _number(one, least), _number(other, most)
    return low is not None and high is not None and low > high


def _beyond(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether all numbers of one part are larger than those of the other."""
    for least in ("minimum", "exclusiveMinimum"):
        for most in ("maximum", "exclusiveMaximum"):
            low, high = _number(one, least), _number(other, most)
            is_open = (least, most) != ("minimum", "maximum")
            if low is not None and high is not None and (low > high or (is_open and low == high)):
                return True
    return False


def _texts_differ(one: Mapping[str, Any], other: Mapping[str, Any], values: list[Any] | None) -> bool:
    if _exceeds(one, "minLength", other, "maxLength"):
        return True
    texts = [value for value in values or () if isinstance(value, str)]
    if values is None:
        return False
    pattern, most, least = other.get("pattern"), _number(other, "maxLength"), _number(other, "minLength")
    return all(
        (isinstance(pattern, str) and _misses(pattern, text))
        or (most is not None and len(text) > most)
        or (least is not None and len(text) < least)
        for text in texts
    )


def _misses(pattern: str, text: str) -> bool:
    """Whether a text surely does not match. Patterns that could take long are not tried."""
    if len(pattern) > 100 or re.search(r"[*+}]\)?[*+{]|\(.*[*+}].*\)[*+{]", pattern):
        return False
    try:
        return re.search(pattern, text) is None
    except (re.error, RecursionError, OverflowError):
        return False


def _arrays_differ(document: Document, one: Mapping[str, Any], other: Mapping[str, Any], depth: int) -> bool:
    if _exceeds(one, "minItems", other, "maxItems"):
        return True
    least = _number(one, "minItems") or 0
    return least >= 1 and are_disjoint(document, _first_item(one), _first_item(other), depth + 1)


def _first_item(part: Mapping[str, Any]) -> Any:
    listed = part.get("prefixItems")
    if isinstance(listed, list | tuple) and listed:
        return listed[0]
    return part.get("items", True)


def _objects_differ(document: Document, one: Mapping[str, Any], other: Mapping[str, Any], depth: int) -> bool:
    if _exceeds(one, "minProperties", other, "maxProperties"):
        return True
    required = one.get("required")
    return isinstance(required, list | tuple) and any(
        are_disjoint(document, _property(one, name), _property(other, name), depth + 1) for name in required
    )


def _property(part: Mapping[str, Any], name: Any) -> Any:
    """What a part says of a property; true where that is not clear."""
    named = part.get("properties")
    if isinstance(named, Mapping) and name in named:
        return named[name]
    return True if part.get("patternProperties") else part.get("additionalProperties", True)
