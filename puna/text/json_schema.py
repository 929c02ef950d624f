"""JSON schemas as grammars can hold answers to them: in other words where need be, or refused by name.

The compiler of grammars refuses most of what it does not know, but a few things it takes and does otherwise
than the standard says. So every schema is written anew with keywords that it knows, in a way that allows what
the schema does, or a part of that: every answer that is finished is valid. Conditions become choices,
references lead to $defs, texts of a format match a pattern (schema/). What cannot be said is refused with the
keyword and its place. Annotations and keywords that say nothing where they stand are left out, among them
x-guidance, by which a schema could ask the compiler to ignore the rest.

Source: JSON Schema, drafts 4 to 2020-12; llguidance's docs/json_schema.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from puna.core import BadValue, Unsupported
from puna.text.schema import conditions, names
from puna.text.schema.document import Document, Schema
from puna.text.schema.formats import KNOWN, NARROWER, PATTERNS

_LARGEST = 2**53  # whole numbers up to here are exact as floats, which grammars compute with
_ONE = ("items", "additionalItems", "additionalProperties")  # keywords whose value is a schema
_MANY = ("allOf", "anyOf", "prefixItems")  # a list of them
_NAMED = ("properties", "patternProperties")  # an object of them
_AS_THEY_ARE = frozenset((
    "type", "enum", "const", "required", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "minProperties",
    "maxProperties",
))  # fmt: skip
_REFUSED = frozenset((
    "unevaluatedItems", "minContains", "maxContains", "extends", "disallow", "divisibleBy",
))  # fmt: skip
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_REFERENCES = ("$ref", "$recursiveRef", "$dynamicRef")
T = TypeVar("T")
_NAME = re.compile(r"[^\w.-]+", re.ASCII)
_MOST_VALUES = 512  # of which lists have each once


def prepared(schema: Schema, where: str = "#", *, keeps_unique: bool = False) -> Schema:
    """A schema that allows a part of what the given one does, with what grammars know; `where` begins places.

    With `keeps_unique` the result may have uniqueItems, to which whoever asks for it holds answers. Raises
    Unsupported with the keyword and its place, BadValue for what is no schema.
    """
    try:
        return _Writer(schema, where, keeps_unique).written()
    except RecursionError:
        raise BadValue("a JSON schema must not be nested so deeply; name its parts in $defs") from None


class _Writer:
    """Writes one schema anew; parts that references lead to are written once, when they are first met."""

    def __init__(self, schema: Schema, where: str, keeps_unique: bool) -> None:
        self._document = Document(schema)
        self._where = where
        self._keeps_unique = keeps_unique
        self._names: dict[int, str] = {}  # by identity
        self._pending: list[tuple[str, Any, str]] = []
        self._used: set[str] = set()

    def written(self) -> Schema:
        root = self._document.root
        made = self._copy(root, self._where)
        if not isinstance(made, dict):
            return bool(made)
        definitions = {}
        while self._pending:
            name, node, where = self._pending.pop()
            definitions[name] = self._copy(node, where)
        return {**made, "$defs": definitions} if definitions else made

    def _reference(self, node: Mapping[str, Any], keyword: str, where: str) -> str:
        """What $ref is in the result."""
        target = self._document.target(node, keyword)
        if target is self._document.root:
            return "#"
        if id(target) not in self._names:
            wanted = _NAME.sub("-", re.split("[/#]", str(node[keyword]))[-1]) or "part"
            name, n = wanted, 1
            while name in self._used:
                name, n = f"{wanted}-{n}", n + 1
            self._used.add(name)
            self._names[id(target)] = name
            place = str(node[keyword]) if str(node[keyword]).startswith("#/") else where
            self._pending.append((name, target, place))
        return f"#/$defs/{self._names[id(target)]}"

    def _copy(self, schema: Any, where: str) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise BadValue(f"{where}: a schema must be an object, true or false, found {schema!r:.80}")
        node = self._with_other_words(self._document.keywords(schema), where)
        refused = [key for key in node if key in _REFUSED and not _says_nothing(key, node[key], node)]
        if refused:
            raise _refusal(where, *refused)
        _check_values(node, where)
        copied: dict[str, Any] = {}
        for key, value in node.items():
            at = f"{where}/{key}"
            if key in _AS_THEY_ARE:
                copied[key] = value
            elif key in _REFERENCES:
                copied["$ref"] = self._reference(schema, key, where)
            elif key in _NAMED:
                copied[key] = self._all_named(value, at)
            elif key in _MANY:
                copied[key] = self._all(value, at)
            elif key in _ONE:
                copied[key] = self._copy(value, at)
            elif key == "format":
                copied |= _format(value, node, at)
            elif key == "uniqueItems" and value is True:
                self._add_unique(copied, node, at)
        return self._with_choices(copied, node, where)

    def _all_named(self, value: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {name: self._copy(part, f"{where}/{name}") for name, part in value.items()}

    def _all(self, value: Sequence[Any], where: str) -> list[Any]:
        return [self._copy(part, f"{where}/{i}") for i, part in enumerate(value)]

    def _with_other_words(self, node: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """The node without keywords about names of properties, in words of others."""
        known = dict(node)
        if not _says_nothing("propertyNames", known.get("propertyNames", True), known):
            made = names.with_names(self._document, known, known.pop("propertyNames"))
            known = self._or_refuse(made, where, "propertyNames")
        if not _says_nothing("unevaluatedProperties", known.get("unevaluatedProperties", True), known):
            known = names.with_evaluated(self._document, known)
        if "minProperties" in known or "maxProperties" in known:
            wanted = [key for key in ("minProperties", "maxProperties") if key in known]
            known = self._or_refuse(names.counted(known), where, *wanted)
        return known

    def _or_refuse(self, made: T | None, where: str, *keywords: str) -> T:
        if made is None:
            raise _refusal(where, *keywords)
        return made

    def _with_choices(self, copied: dict[str, Any], node: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The copy with what the node says by conditions, as parts of its allOf."""
        document, more = self._document, list[Any]()
        if "not" in node and node["not"] is not False:
            more.append(self._or_refuse(conditions.denied(document, node["not"]), where, "not"))
        if "contains" in node and node.get("minContains") != 0:
            more.append(self._or_refuse(names.contained(node), where, "contains"))
        found = list(conditions.conditions_of(node))
        kept = []
        for i, part in enumerate(node.get("allOf", ())):
            only = conditions.only_conditions(part)
            if only is None:
                kept.append(copied["allOf"][i])
            else:
                found += only
        more += conditions.decided(document, found)
        if "pattern" in node and node.get("format") in PATTERNS and "pattern" in copied:
            more.append({"pattern": PATTERNS[node["format"]]})
        if "oneOf" in node:
            options = conditions.exclusive(document, node["oneOf"])
            if node["oneOf"] and not options:
                raise _refusal(where, "oneOf")
            more.append({"anyOf": options})
        copied.pop("allOf", None)
        parts = kept + [self._copy(part, where) for part in more]
        return {**copied, "allOf": parts} if parts else copied

    def _add_unique(self, copied: dict[str, Any], node: Mapping[str, Any], where: str) -> None:
        if _says_nothing("uniqueItems", True, node):
            return
        if not self._keeps_unique:
            raise _refusal(where.rpartition("/")[0], "uniqueItems")
        copied["uniqueItems"] = True


def _refusal(where: str, *keywords: str) -> Unsupported:
    return Unsupported(
        f"{where:.200}: answers cannot be held to every keyword of JSON Schema, found "
        f"{', '.join(map(repr, keywords))}; take it out or say it in other words"
    )


def _says_nothing(key: str, value: Any, node: Mapping[str, Any]) -> bool:
    """Whether a keyword allows everything where it stands."""
    if key == "uniqueItems":
        most = node.get("maxItems")
        return value is False or (isinstance(most, int) and most <= 1)
    if key in ("propertyNames", "unevaluatedItems", "unevaluatedProperties"):
        return value is True or (isinstance(value, Mapping) and not value)
    return key in ("minContains", "maxContains")  # beside contains, which looks at them


def _format(value: Any, node: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A format in the compiler's words."""
    types = node.get("type", "string")
    if not isinstance(value, str) or not (isinstance(types, str | list | tuple) and "string" in types):
        return {}  # formats are of texts
    if value not in KNOWN:
        raise Unsupported(
            f"{where}: the format {value!r:.80} is not known; known are {', '.join(sorted(KNOWN))}"
        )
    if value in PATTERNS:
        return {} if "pattern" in node else {"pattern": PATTERNS[value]}
    return {"format": NARROWER.get(value, value)}


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


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a value."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, Mapping):
        yield from _numbers(list(value.values()))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
