from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core import BadInput, BadValue, Unsupported
from puna.text.json_schema import prepared
from puna.text.schema.disjoint import are_disjoint
from puna.text.schema.document import _SHAPES, Document
from puna.text.schema.negation import other_texts, outside
from puna.text.schema.places import Places, has_unique, without_unique


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, True),
        ({"type": "array", "uniqueItems": False}, {"type": "array"}),
        ({"uniqueItems": True, "maxItems": 1}, {"maxItems": 1}),
        ({"if": {"type": "null"}, "minimum": 2}, {"minimum": 2}),
        ({"then": {}, "else": {}, "minContains": 2, "not": False, "dependentRequired": {}}, {}),
        ({"propertyNames": True, "unevaluatedProperties": {}}, {}),
        ({"title": "T", "default": {"not": 1}, "deprecated": True, "x-guidance": {"lenient": True}}, {}),
        ({"properties": {"not": {"title": "T"}, "title": {}}}, {"properties": {"not": {}, "title": {}}}),
        ({"items": [{"uniqueItems": False}], "additionalItems": {"title": "T"}},
         {"prefixItems": [{}], "items": {}}),
        ({"$defs": {"a": {"description": "d"}}, "$ref": "#/$defs/a"},
         {"$ref": "#/$defs/a", "$defs": {"a": {}}}),
        ({"definitions": {"a": {"not": {}}, "b": {}}, "items": {"$ref": "#/definitions/b"}},
         {"items": {"$ref": "#/$defs/b"}, "$defs": {"b": {}}}),
        ({"$defs": {"a": {"$anchor": "x"}}, "$ref": "#x"}, {"$ref": "#/$defs/x", "$defs": {"x": {}}}),
        ({"$defs": {"a/b": {}}, "$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/a-1b", "$defs": {"a-1b": {}}}),
        ({"$ref": "#/$defs/a/items", "$defs": {"a": {"items": {}}}},
         {"$ref": "#/$defs/items", "$defs": {"items": {}}}),
        ({"$id": "urn:x", "items": {"$ref": "urn:x"}}, {"items": {"$ref": "#"}}),
        ({"$id": "https://a.example/b/c.json", "anyOf": [{"$ref": "c.json#/$defs/d"}, {"$ref": "d.json"}],
          "$defs": {"d": {"type": "null"}, "e": {"$id": "d.json", "type": "string"}}},
         {"anyOf": [{"$ref": "#/$defs/d"}, {"$ref": "#/$defs/d.json"}],
          "$defs": {"d.json": {"type": "string"}, "d": {"type": "null"}}}),
        ({"type": "integer", "format": "int64", "x-order": 1}, {"type": "integer"}),
        ({"minProperties": 2, "required": ["a", "b"]}, {"required": ["a", "b"]}),
    ],
)  # fmt: skip
def test_what_says_nothing_is_left_out(schema: Any, expected: Any) -> None:
    assert prepared(schema) == expected


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"items": {"not": {"pattern": "a"}}}}}, "#/properties/a/items: .*'not'"),
        ({"uniqueItems": True}, "#: .*'uniqueItems'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"not": {"format": "date"}}}}, "#/\\$defs/a: .*'not'"),
        ({"anyOf": [{}, {"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}]}, "#/anyOf/1: .*'oneOf'"),
        ({"propertyNames": {"pattern": "a", "minLength": 3}}, "'propertyNames'"),
        ({"contains": {}, "minContains": 2}, "'contains'"),
        ({"unevaluatedItems": False}, "'unevaluatedItems'"),
        ({"const": [{"a": 2**53 + 1}]}, "#/const: .*9007199254740993"),
        ({"enum": [1e300]}, "#/enum"),
        ({"minimum": -(2**60)}, "#/minimum"),
        ({"prefixItems": [{}], "additionalItems": False}, "additionalItems"),
        ({"minProperties": 2}, "#: .*'minProperties'"),
        ({"properties": {f"p{i}": {} for i in range(20)}, "maxProperties": 9}, "'maxProperties'"),
        ({"type": "string", "format": "colour"}, "#/format: .*'colour'"),
        ({"type": ["null", "string"], "format": "colour"}, "#/format"),
        (
            {"items": {"$ref": "https://example.org/s.json"}},
            "documents elsewhere.*'https://example.org/s.json'",
        ),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "draft 4 or later"),
    ],
)
def test_what_cannot_be_held_to_is_refused_with_its_place(schema: Any, place: str) -> None:
    with pytest.raises(Unsupported, match=place):
        prepared(schema)


@pytest.mark.parametrize(
    "value", [None, 3, -1, 0.5, "x", [], [1], [[]], {}, {"a": 1}, True, {"a": [3]}, {"a": [[3]]}]
)
@pytest.mark.parametrize(
    "keyword", sorted({*_SHAPES, "const", "minContains", "$id", "$anchor", "$defs", "$schema"})
)
@pytest.mark.parametrize(
    "around",
    [
        lambda s: s, lambda s: {"not": s}, lambda s: {"oneOf": [s, {"type": "array"}]},
        lambda s: {"$ref": "#/default", "default": s}, lambda s: {"not": {"if": s, "then": s}},
    ],
)  # fmt: skip
def test_values_that_keywords_cannot_have_are_refused(around: Any, keyword: str, value: Any) -> None:
    """Or not: but nothing else happens."""
    with suppress(BadValue, Unsupported):
        known = prepared(around({keyword: value}), keeps_unique=True)
        if has_unique(known):
            without_unique(Places(known), known)


@pytest.mark.parametrize("reference", ["#/$defs/b", "#nowhere", "#/$defs/a/x/9", 3])
def test_references_to_nothing_are_refused(reference: Any) -> None:
    with pytest.raises(BadValue, match=r"\$ref must"):
        prepared({"$defs": {"a": {"x": [1]}}, "$ref": reference})


@pytest.mark.parametrize("schema", [3, {"properties": {"a": 3}}, {"items": ["x"]}, {"allOf": [None]}])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(BadValue, match=re.escape("must be an object, true or false")):
        prepared(schema)


def test_deep_nesting_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(BadValue, match="nested"):
        prepared(schema)


def many_ways(n: int) -> dict[str, Any]:
    """References that lead to the same place in 10 to the n ways."""
    parts = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 10} for i in range(n)}
    return {**parts, f"a{n}": {"const": "x"}}


def inside_each_other(depth: int) -> Any:
    schema: Any = {"const": "x"}
    for _ in range(depth):
        schema = {"oneOf": [{"properties": {f"p{i}": schema}, "required": [f"q{i}"]} for i in range(3)]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"$ref": "#/$defs/a0"}, "$defs": many_ways(20)},
        {"oneOf": [{"$ref": "#/$defs/a0"}, {"$ref": "#/$defs/a1"}], "$defs": many_ways(20)},
        inside_each_other(9),
        {"oneOf": [{"properties": {"k": {"enum": ["a"] * 50}}, "required": [f"r{i}"]} for i in range(150)]},
    ],
)
def test_what_would_take_too_long_to_write_is_refused(schema: Any) -> None:
    with pytest.raises(BadInput, match=r"combinations of|'oneOf'"):
        prepared(schema)


NAMES = st.sampled_from("abc")
LEAVES = (
    {}, True, False, {"type": "integer", "title": "t"}, {"const": "a"}, {"enum": ["a", 1, None]},
    {"maxItems": 1}, {"minimum": 2}, {"type": ["string", "null"]}, {"required": ["a"]}, {"minItems": 2},
    {"maxLength": 0},
    {"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": "a"}}, "required": ["a"]},
    {"type": "object", "properties": {"b": {"enum": ["a", "b"]}}}, {"$ref": "#/$defs/shared"}, {"maximum": 1},
    {"propertyNames": {"enum": ["a", "b"]}}, {"minProperties": 1, "properties": {"a": {}, "b": {}}},
    {"maxProperties": 1, "properties": {"a": {}, "b": {}}}, {"const": True}, {"type": "number"},
)  # fmt: skip


def _if_a_is(name: str, then: Any) -> dict[str, Any]:
    return {"if": {"properties": {"a": {"const": name}}}, "then": then}


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    two = st.lists(inner, min_size=1, max_size=2)
    return st.one_of(
        st.fixed_dictionaries({"items": inner, "uniqueItems": st.just(False)}),
        st.fixed_dictionaries({"properties": st.dictionaries(NAMES, inner), "default": st.just(1)}),
        st.fixed_dictionaries({"anyOf": two, "if": inner}),
        st.fixed_dictionaries({"additionalProperties": inner, "else": inner}),
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"oneOf": two}),
        st.fixed_dictionaries({"allOf": two}),
        st.fixed_dictionaries({"if": inner, "then": inner}),
        st.fixed_dictionaries({"if": inner, "else": inner}),
        st.fixed_dictionaries({"contains": inner}),
        st.fixed_dictionaries({"dependentSchemas": st.dictionaries(NAMES, inner)}),
        st.fixed_dictionaries({"unevaluatedProperties": inner, "properties": st.dictionaries(NAMES, inner)}),
        st.builds(
            lambda a, b: {"allOf": [_if_a_is("a", a), _if_a_is("b", b)]},
            inner, inner,
        ),
    )  # fmt: skip


SCHEMAS = st.recursive(st.sampled_from(LEAVES), _around, max_leaves=8)
VALUES = st.recursive(
    st.sampled_from([1, 3, "a", "b", "", None, 2.5, True]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
SHARED = {"$defs": {"shared": {"type": "string", "maxLength": 1}}}


@settings(max_examples=400, deadline=None)
@given(SCHEMAS, st.lists(VALUES, min_size=8, max_size=8))
def test_nothing_more_is_allowed(schema: Any, values: list[Any]) -> None:
    """jsonschema is the judge: what is valid under the schema that is written is so under the given one."""
    given_one = {**schema, **SHARED} if isinstance(schema, dict) else schema
    try:
        written = prepared(given_one)
    except Unsupported:
        return
    judge = jsonschema.Draft202012Validator
    for value in values:
        assert judge(given_one).is_valid(value) or not judge(written).is_valid(value), written


@given(st.sampled_from(LEAVES), VALUES)
def test_what_is_outside_a_schema_is_not_valid_under_it(schema: Any, value: Any) -> None:
    whole = {**schema, **SHARED} if isinstance(schema, dict) else schema
    document = Document(whole)
    judge = jsonschema.Draft202012Validator
    for other in outside(document, whole):
        assert not (judge({**other, **SHARED}).is_valid(value) and judge(whole).is_valid(value))


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, SCHEMAS, st.lists(VALUES, min_size=8, max_size=8))
def test_no_value_is_valid_under_disjoint_schemas(first: Any, second: Any, values: list[Any]) -> None:
    whole = {"allOf": [first, second], **SHARED}
    if are_disjoint(Document(whole), first, second):
        judge = jsonschema.Draft202012Validator(whole)
        assert not any(map(judge.is_valid, values))


@given(st.lists(st.text('abé\n"\\', max_size=4), min_size=1, max_size=6), st.text('abé\n"\\', max_size=5))
def test_patterns_of_other_texts(barred: list[str], text: str) -> None:
    pattern = re.sub(r"\\u\{([0-9a-f]+)\}", lambda m: re.escape(chr(int(m[1], 16))), other_texts(barred))
    assert bool(re.search(pattern.replace("$", r"\Z"), text)) == (text not in barred)
