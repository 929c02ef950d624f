"""JSON schemas of our own: 200 that together use every keyword that answers can be held to.

`schemas(n)` is a function of n. Each schema is an object of a few properties, whose schemas are drawn from
the makers below, up to three deep; each maker is one keyword, or a few that belong together, in the way that
schemas of applications use them. All can be fulfilled.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
Make = Callable[[random.Random, int], Schema]

WORDS = ("name", "kind", "größe", "日本", "a b", "quo'te", "x-1", "_id", "emoji😀", "tab\\t")
VALUES = ("red", "green", "blu", "blue", "", "é😀", 'q"q', "back\\slash", "new\nline")
FORMATS = (
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
    "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer", "relative-json-pointer", "regex",
    "idn-email", "idn-hostname",
)  # fmt: skip
PATTERNS = (
    "^[a-z]{2,5}$", "b+", "^(foo|bar)?$", "^\\d{3}-\\d{2}$", "[A-F0-9]{2}$", "^é+", "^[^\\s]+$",
    "^\\w+\\.py$",
)  # fmt: skip


def text(rng: random.Random, depth: int) -> Schema:
    least = rng.randrange(3)
    return rng.choice(
        [
            {"type": "string"},
            {"type": "string", "minLength": least, "maxLength": least + rng.randrange(1, 9)},
            {"type": "string", "pattern": rng.choice(PATTERNS)},
            {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 6},
        ]
    )  # fmt: skip


def formatted(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "format": rng.choice(FORMATS)}


def whole(rng: random.Random, depth: int) -> Schema:
    low = rng.choice([-1000, -7, 0, 1, 5])
    return rng.choice(
        [
            {"type": "integer"}, {"type": "integer", "minimum": low, "maximum": low + rng.randrange(1, 300)},
            {"type": "integer", "exclusiveMinimum": low}, {"type": "integer", "exclusiveMaximum": low},
            {"type": "integer", "multipleOf": rng.choice([2, 5, 10])},
            {"type": "integer", "minimum": 10, "maximum": 99, "multipleOf": 3},
        ]
    )  # fmt: skip


def number(rng: random.Random, depth: int) -> Schema:
    low = rng.choice([-2.5, 0, 0.25])
    return rng.choice(
        [
            {"type": "number"}, {"type": "number", "minimum": low, "exclusiveMaximum": low + 1.5},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "number", "multipleOf": 0.5},
        ]
    )  # fmt: skip


def listed(rng: random.Random, depth: int) -> Schema:
    values: list[Any] = rng.sample(VALUES, rng.randrange(1, 5))
    values += rng.sample([1, 2.5, None, True, [1, "x"], {"a": {"b": []}}], rng.randrange(3))
    return rng.choice([{"enum": values}, {"const": rng.choice(values)}])


def plain(rng: random.Random, depth: int) -> Schema:
    return rng.choice([
        {"type": "boolean"}, {"type": "null"}, {}, {"type": ["string", "null"], "maxLength": 5},
        {"type": ["integer", "boolean"], "minimum": 0},
    ])  # fmt: skip


def array(rng: random.Random, depth: int) -> Schema:
    item, least = schema(rng, depth + 1), rng.randrange(2)
    return rng.choice(
        [
            {"type": "array", "items": item, "maxItems": 3},
            {"type": "array", "items": item, "minItems": least, "maxItems": least + rng.randrange(1, 4)},
            {"type": "array", "prefixItems": [item, schema(rng, depth + 1)], "items": False, "minItems": 1},
            {"type": "array", "prefixItems": [item], "items": {"type": "boolean"}, "maxItems": 4},
            {"type": "array", "contains": {"const": "it"}, "items": {"type": "string"}, "maxItems": 3},
        ]
    )


def unique(rng: random.Random, depth: int) -> Schema:
    items = rng.choice(
        [
            {"enum": list(VALUES[:4])}, {"type": "string", "maxLength": 3}, {"type": "integer"},
            {"type": "boolean"}, {"type": "number"}, {"type": ["null", "string"]}, {"$ref": "#/$defs/pair"},
            {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
        ]
    )  # fmt: skip
    return {"type": "array", "items": items, "uniqueItems": True, "minItems": rng.randrange(3), "maxItems": 6}


def named(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(WORDS, rng.randrange(1, 4))
    made: Schema = {"type": "object", "properties": {name: schema(rng, depth + 1) for name in names}}
    made["required"] = [name for name in names if rng.random() < 0.6]
    if rng.random() < 0.6:
        made["additionalProperties"] = rng.choice([False, False, {"type": "integer"}, True])
    return made


def counted(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(WORDS, 3)
    parts = {name: schema(rng, depth + 1) for name in names}
    made: Schema = {"type": "object", "properties": parts, "additionalProperties": False}
    return {**made, **rng.choice([{"minProperties": 1}, {"minProperties": 2}, {"maxProperties": 2}])}


def free(rng: random.Random, depth: int) -> Schema:
    value = schema(rng, depth + 1)
    return rng.choice(
        [
            {"type": "object", "additionalProperties": value, "maxProperties": 2},
            {"type": "object", "patternProperties": {"^x-": value, "^[0-9]+$": {"type": "null"}},
             "additionalProperties": False},
            {"type": "object", "propertyNames": {"pattern": "^[a-z]{1,4}$"}, "additionalProperties": value},
            {"type": "object", "propertyNames": {"enum": ["one", "two"]}, "additionalProperties": value},
            {"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": {"type": "null"}},
        ]
    )  # fmt: skip


def alternatives(rng: random.Random, depth: int) -> Schema:
    a, b = schema(rng, depth + 1), schema(rng, depth + 1)
    kinds = [
        {"type": "object", "properties": {"type": {"const": kind}, "value": part}, "required": ["type"]}
        for kind, part in (("a", a), ("b", b))
    ]
    return rng.choice(
        [
            {"anyOf": [a, b]}, {"oneOf": kinds},
            {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 80}]},
            {"oneOf": [{"type": "string", "maxLength": 4}, {"type": "integer"}, {"type": "null"}]},
            {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 9}]},
            {"oneOf": [{"type": "object", "required": [name]} for name in ("one", "other")]},
            {"allOf": [{"type": "object", "properties": {"a": a}, "required": ["a"]},
                       {"properties": {"b": {"type": "null"}}, "required": ["b"]}]},
        ]
    )  # fmt: skip


def conditional(rng: random.Random, depth: int) -> Schema:
    base: Schema = {
        "type": "object",
        "properties": {
            "mode": {"enum": ["fast", "slow", "off"]},
            "n": {"type": "integer"},
            "why": text(rng, 3),
        },
        "required": ["mode"],
        "additionalProperties": False,
    }
    test = {"properties": {"mode": {"const": "fast"}}}
    return rng.choice(
        [
            {**base, "if": test, "then": {"required": ["n"]}},
            {**base, "if": {**test, "required": ["mode"]}, "then": {"required": ["n"]},
             "else": {"required": ["why"]}},
            {**base, "if": {"required": ["n"]}, "then": {"properties": {"n": {"minimum": 5}}}},
            {**base, "allOf": [
                {"if": {"properties": {"mode": {"const": mode}}}, "then": {"required": [wanted]}}
                for mode, wanted in (("fast", "n"), ("slow", "why"))
            ]},
            {**base, "dependentRequired": {"n": ["why"]}},
            {**base, "dependentSchemas": {"why": {"properties": {"mode": {"const": "off"}}}}},
        ]
    )  # fmt: skip


def negated(rng: random.Random, depth: int) -> Schema:
    return rng.choice(
        [
            {"type": "string", "not": {"enum": ["red", "rose", "é"]}, "maxLength": 6},
            {"not": {"type": ["object", "array", "string"]}},
            {"type": "integer", "not": {"minimum": 0, "maximum": 9}},
            {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
             "not": {"required": ["a", "b"]}},
            {"type": "object", "properties": {"k": {"enum": ["a", "b"]}}, "required": ["k"],
             "not": {"properties": {"k": {"const": "a"}}}},
        ]
    )  # fmt: skip


def referring(rng: random.Random, depth: int) -> Schema:
    return rng.choice([
        {"$ref": "#/$defs/pair"}, {"$ref": "#/$defs/tree"}, {"$ref": "#colour"},
        {"$ref": "#/$defs/list", "title": "beside a reference"},
        {"allOf": [{"$ref": "#/$defs/pair"}], "unevaluatedProperties": False},
    ])  # fmt: skip


DEFINITIONS = {
    "pair": {
        "type": "object",
        "properties": {"key": {"type": "string", "maxLength": 3}, "n": {"type": "integer", "minimum": 0}},
        "required": ["key"],
    },
    "tree": {
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
        },
        "required": ["value"],
        "additionalProperties": False,
    },
    "list": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"next": {"$ref": "#/$defs/list"}},
                                          "required": ["next"], "additionalProperties": False}]},
    "colour": {"$anchor": "colour", "enum": ["#fff", "rot", "grün"]},
}  # fmt: skip
SIMPLE: tuple[Make, ...] = (text, formatted, whole, number, listed, plain, unique, negated, referring)
DEEP: tuple[Make, ...] = (array, named, counted, free, alternatives, conditional)


def schema(rng: random.Random, depth: int) -> Schema:
    makers = SIMPLE if depth >= 2 else (*SIMPLE, *DEEP)
    return rng.choice(makers)(rng, depth)


def schemas(n: int) -> list[Schema]:
    made = []
    for i in range(n):
        rng = random.Random(i)
        makers = (*SIMPLE, *DEEP)
        top = {
            "type": "object",
            "properties": {"first": makers[i % len(makers)](rng, 1), "second": schema(rng, 0)},
            "required": ["first"],
            "$defs": DEFINITIONS,
        }
        made.append({"$schema": "https://json-schema.org/draft/2020-12/schema", **top})
    return made


def has_keyword(value: Any, name: str) -> bool:
    """Whether a schema has a keyword anywhere; names of properties are taken for some."""
    if isinstance(value, list):
        return any(has_keyword(item, name) for item in value)
    return isinstance(value, dict) and (name in value or any(has_keyword(v, name) for v in value.values()))
