"""What is outside of a schema, said in keywords that grammars know.

Of what a schema excludes each keyword excludes a part, and each part is an alternative here. Keywords that
have no opposite in JSON Schema (a pattern, a format) are left out, so the alternatives may be less than all
that is outside, and never more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from puna.text.schema.document import Document

TYPES = ("null", "boolean", "number", "string", "array", "object")
_DEEPEST = 12  # references and schemas inside schemas

Alternatives = list[dict[str, Any]]


def outside(document: Document, node: Any, depth: int = 0) -> Alternatives:
    """Schemas, each of which allows only what `node` does not; none where nothing can be said.

    What they hold are nodes of the document and new ones over them, with references as they are there.
    """
    if isinstance(node, bool):
        return [] if node else [{}]
    if not isinstance(node, Mapping) or depth > _DEEPEST:
        return []
    found: Alternatives = []
    for key, value in document.keywords(node).items():
        if key == "$ref":
            found += outside(document, document.target(node, key), depth + 1)
        elif key in ("const", "enum"):
            found += other_values([value] if key == "const" else value)
        elif key == "type":
            found += _other_types(value)
        elif key in _LIMITS:
            found += _beyond(key, value)
        elif key == "required" and isinstance(value, list | tuple):
            found += [{"type": "object", "properties": {name: False}} for name in value]
        elif key == "properties" and isinstance(value, Mapping):
            found += [
                {"type": "object", "properties": {name: other}, "required": [name]}
                for name, part in value.items()
                for other in outside(document, part, depth + 1)
            ]
        elif key in ("allOf", "anyOf", "oneOf", "not"):
            found += _of_combination(document, key, value, depth)
    return found


def _of_combination(document: Document, key: str, value: Any, depth: int) -> Alternatives:
    if key == "not":
        return [{"allOf": [value]}]
    if not isinstance(value, list | tuple):
        return []
    parts = [outside(document, part, depth + 1) for part in value]
    if key == "allOf":
        return [alternative for part in parts for alternative in part]
    return conjunction(parts)  # of oneOf: no part at all


def conjunction(parts: Sequence[Alternatives]) -> Alternatives:
    """One of every list at the same time; none where a list is empty."""
    if not all(parts):
        return []
    return [{"allOf": [part[0] if len(part) == 1 else {"anyOf": part} for part in parts]}]


def _other_types(value: Any) -> Alternatives:
    named = (
        {value} if isinstance(value, str) else set(value) if isinstance(value, list | tuple) else set(TYPES)
    )
    if "integer" in named:
        named.add("number")  # numbers with a fraction have no name
    others = [name for name in TYPES if name not in named]
    return [{"type": others}] if others else []


# a keyword with a number: the type it is about, its opposite, and what that says of the number
_LIMITS = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
}


def _beyond(key: str, value: Any) -> Alternatives:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    kind, opposite, more = _LIMITS[key]
    if value + more < 0 and kind != "number":
        return []
    return [{"type": kind, opposite: value + more}]


def other_values(values: Any) -> Alternatives:
    """Values that are none of some: texts that differ, the other truth value, and types that none has."""
    if not isinstance(values, list | tuple):
        return []
    found: Alternatives = []
    texts = [value for value in values if isinstance(value, str)]
    if texts:
        found.append({"type": "string", "pattern": other_texts(texts)})
    truths = [value for value in values if isinstance(value, bool)]
    if len(set(truths)) == 1:
        found.append({"const": not truths[0]})
    unused = [name for name in TYPES if not any(_is_of(value, name) for value in values)]
    return [*found, {"type": unused}] if unused else found


def _is_of(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    kinds: dict[str, Any] = {
        "null": type(None), "number": int | float, "string": str, "array": list | tuple, "object": Mapping,
    }  # fmt: skip
    return name in kinds and isinstance(value, kinds[name])


def other_texts(texts: Sequence[str]) -> str:
    """A pattern of all texts but these, without looking around."""
    tree: dict[str, Any] = {}
    for text in texts:
        place = tree
        for character in text:
            place = place.setdefault(character, {})
        place[""] = {}
    return f"^{_beside(tree)}$"


def _beside(tree: Mapping[str, Any]) -> str:
    """What goes on from here to no text of the tree; an empty pattern stands for the end."""
    following = [character for character in tree if character]
    parts = [_escaped(character) + _beside(tree[character]) for character in following]
    if following:
        parts.append(rf"[^{''.join(map(_escaped, following))}](?s:.)*")
    else:
        parts.append(r"(?s:.)+")
    return f"(?:{'|'.join(parts)})" + ("" if "" in tree else "?")


def _escaped(character: str) -> str:
    return character if character.isalnum() else f"\\u{{{ord(character):x}}}"
