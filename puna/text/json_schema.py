"""JSON schemas as grammars can hold answers to them: whole, or refused with the keyword's name and place.

The compiler of grammars refuses most of what it does not know, but a few things it takes and does otherwise
than the standard says. Those are found here, so that every answer that is finished is valid. Keywords that
say nothing where they stand (uniqueItems: false, if without then) and annotations are left out, among them
x-guidance, by which a schema could ask the compiler to ignore the rest.

Source: JSON Schema, drafts 4 to 2020-12; llguidance's docs/json_schema.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from puna.core import BadValue, Unsupported

Schema = Mapping[str, Any] | bool

_LARGEST = 2**53  # whole numbers up to here are exact as floats, which grammars compute with
_PLAIN_NAME = re.compile(r"[\w.-]+", re.ASCII)  # spelled in a reference as it is
_ONE = ("items", "additionalItems", "additionalProperties")  # keywords whose value is a schema
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")  # a list of them
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # an object of them
_ANNOTATIONS = frozenset((
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment",
    "contentMediaType", "contentEncoding", "contentSchema", "$vocabulary", "x-guidance",
))  # fmt: skip
_REFUSED = frozenset((
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames", "dependencies",
    "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
    "$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy",
))  # fmt: skip
_FORMATS = frozenset((
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
))  # fmt: skip
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def prepared(schema: Schema, where: str = "#") -> Schema:
    """A copy of the schema that means the same and has only what grammars know; `where` begins each place.

    Raises Unsupported with the keyword and its place, BadValue for what is no schema.
    """
    try:
        used: Schema = _without_unused(schema) if isinstance(schema, Mapping) else schema
        result: Schema = _copy(used, where)
    except RecursionError:
        raise BadValue("a JSON schema must not be nested so deeply; name its parts in $defs") from None
    return result


def _without_unused(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema without definitions that nothing refers to, which need not be held to."""
    references = set(_references(schema))
    if not all(reference.startswith("#/") for reference in references):
        return schema  # by anchors or names of documents: not looked into
    used = dict(schema)
    for key in ("$defs", "definitions"):
        if isinstance(schema.get(key), Mapping):
            parts = {reference.split("/")[2] for reference in references if reference.startswith(f"#/{key}/")}
            used[key] = {
                name: part
                for name, part in schema[key].items()
                if name in parts or not _PLAIN_NAME.fullmatch(str(name))
            }
    return used


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)


def _copy(schema: Any, where: str) -> Any:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise BadValue(f"{where}: a schema must be an object, true or false, found {schema!r:.80}")
    refused = [key for key in schema if key in _REFUSED and not _says_nothing(key, schema[key], schema)]
    if refused:
        raise Unsupported(
            f"{where}: answers cannot be held to every keyword of JSON Schema, found "
            f"{', '.join(map(repr, refused))}; take it out or say it in other words"
        )
    _check_values(schema, where)
    copied: dict[str, Any] = {}
    for key, value in schema.items():
        at = f"{where}/{key}"
        if key in _REFUSED or key in _ANNOTATIONS:
            continue
        if key in _NAMED and isinstance(value, Mapping):
            copied[key] = {name: _copy(part, f"{at}/{name}") for name, part in value.items()}
        elif key in _MANY and isinstance(value, list | tuple):
            copied[key] = [_copy(part, f"{at}/{i}") for i, part in enumerate(value)]
        elif key in _ONE:
            copied[key] = _copy(value, at)
        else:
            copied[key] = value
    return copied


def _says_nothing(key: str, value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a keyword allows everything where it stands."""
    if key == "uniqueItems":
        most = schema.get("maxItems")
        return value is False or (isinstance(most, int) and most <= 1)
    if key in ("dependencies", "dependentRequired", "dependentSchemas"):
        return isinstance(value, Mapping) and not value
    if key in ("propertyNames", "unevaluatedItems", "unevaluatedProperties"):
        return value is True or (isinstance(value, Mapping) and not value)
    if key == "if":
        return "then" not in schema and "else" not in schema
    if key in ("then", "else"):
        return "if" not in schema
    if key in ("minContains", "maxContains"):
        return "contains" not in schema
    return key == "not" and value is False


def _check_values(schema: Mapping[str, Any], where: str) -> None:
    """Refuse what grammars would take and do otherwise."""
    for name in ("const", "enum", *_BOUNDS):
        for number in _numbers(schema.get(name)):
            if abs(number) > _LARGEST:
                raise Unsupported(
                    f"{where}/{name}: numbers beyond 2**53 cannot be held to exactly, found {number!r:.40}"
                )
    if "prefixItems" in schema and "additionalItems" in schema:
        raise Unsupported(f"{where}: prefixItems beside additionalItems is of no draft; write items instead")
    least, required = schema.get("minProperties"), schema.get("required")
    n_required = len({repr(name) for name in required}) if isinstance(required, list | tuple) else 0
    if isinstance(least, int) and least > max(1, n_required):
        raise Unsupported(
            f"{where}/minProperties: answers cannot be held to {least} different properties, as a name that "
            "the schema does not give may come twice; give the names in required"
        )
    given = schema.get("format")
    types = schema.get("type", "string")
    of_strings = isinstance(types, str | list | tuple) and "string" in types
    if isinstance(given, str) and given not in _FORMATS and of_strings:
        raise Unsupported(
            f"{where}/format: the format {given!r:.80} is not known; known are {', '.join(sorted(_FORMATS))}"
        )


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a value."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Mapping):
        yield from _numbers(list(value.values()))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
