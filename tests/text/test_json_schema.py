from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core import BadValue, Unsupported
from puna.text.json_schema import prepared


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
         {"items": [{}], "additionalItems": {}}),
        ({"$defs": {"a": {"description": "d"}}, "$ref": "#/$defs/a"},
         {"$defs": {"a": {}}, "$ref": "#/$defs/a"}),
        ({"definitions": {"a": {"not": {}}, "b": {}}, "items": {"$ref": "#/definitions/b"}},
         {"definitions": {"b": {}}, "items": {"$ref": "#/definitions/b"}}),
        *((same, same) for same in (
            {"$defs": {"a": {"$anchor": "x"}}, "$ref": "#x"},
            {"$defs": {"a/b": {}}, "$ref": "#/$defs/a~1b"},
            {"$ref": "#/$defs/a/items", "$defs": {"a": {"items": {}}}},
            {"type": "integer", "format": "int64", "x-order": 1},
            {"minProperties": 2, "required": ["a", "b"]},
            {"properties": 3, "allOf": None, "required": [[1]]},  # the compiler says what is wrong with it
        )),
    ],
)  # fmt: skip
def test_what_says_nothing_is_left_out(schema: Any, expected: Any) -> None:
    assert prepared(schema) == expected


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"items": {"not": {}}}}}, "#/properties/a/items: .*'not'"),
        ({"anyOf": [{}, {"if": {}, "then": {}}]}, "#/anyOf/1: .*'if', 'then'"),
        ({"uniqueItems": True}, "'uniqueItems'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"not": {}}}}, "#/\\$defs/a: .*'not'"),
        ({"dependencies": {"a": ["b"]}}, "'dependencies'"),  # of draft 7, but nobody would expect less
        ({"const": [{"a": 2**53 + 1}]}, "#/const: .*9007199254740993"),
        ({"enum": [1e300]}, "#/enum"),
        ({"minimum": -(2**60)}, "#/minimum"),
        ({"prefixItems": [{}], "additionalItems": False}, "additionalItems"),
        ({"minProperties": 2}, "#/minProperties"),
        ({"format": "iri"}, "#/format: .*'iri'"),
        ({"type": ["null", "string"], "format": "iri"}, "#/format"),
    ],
)
def test_what_cannot_be_held_to_is_refused_with_its_place(schema: Any, place: str) -> None:
    with pytest.raises(Unsupported, match=place):
        prepared(schema)


@pytest.mark.parametrize("schema", [3, {"properties": {"a": 3}}, {"items": "x"}, {"allOf": [None]}])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(BadValue, match=re.escape("must be an object, true or false")):
        prepared(schema)


def test_deep_nesting_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(BadValue, match="nested"):
        prepared(schema)


NAMES = st.sampled_from("abc")
LEAVES = (
    {}, True, {"type": "integer", "title": "t"}, {"uniqueItems": False}, {"const": "a"}, {"maxItems": 1},
)  # fmt: skip


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.fixed_dictionaries({"items": inner, "uniqueItems": st.just(False)}),
        st.fixed_dictionaries({"properties": st.dictionaries(NAMES, inner), "default": st.just(1)}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2), "if": inner}),
        st.fixed_dictionaries({"additionalProperties": inner, "else": inner}),
    )


SCHEMAS = st.recursive(st.sampled_from(LEAVES), _around, max_leaves=8)
VALUES = st.recursive(
    st.sampled_from([1, "a", "b", None, 2.5, True]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(SCHEMAS, VALUES)
def test_the_copy_means_the_same(schema: Any, value: Any) -> None:
    """jsonschema is the judge."""
    kept = prepared(schema)
    judge = jsonschema.Draft202012Validator
    assert judge(schema).is_valid(value) == judge(kept).is_valid(value)
