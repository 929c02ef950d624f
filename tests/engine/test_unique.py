"""Lists whose items must differ: what the reader bars is what jsonschema refuses, and nothing else."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text.vocabularies import smollm2_tokenizer

from puna.engine.grammar import GrammarCompiler
from puna.engine.grammar_state import GrammarState
from puna.engine.unique import Reading
from puna.text.call_grammar import call_grammar
from puna.text.formats.base import ToolStyle
from puna.text.json_schema import prepared
from puna.text.schema.places import Places

UNIQUE: Any = {"type": "array", "uniqueItems": True}
VALUES = st.recursive(
    st.sampled_from([0, 1, 1.0, 1e0, True, False, None, "", "a", "1", 'q"]', "b\\", "é😀", 10, 2.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=10,
)
SCHEMAS: list[Any] = [
    {"$defs": {"u": UNIQUE}, "$ref": "#/$defs/u"},
    {"items": UNIQUE},
    {"uniqueItems": True, "items": {"$ref": "#"}},
    {"properties": {"a": UNIQUE}, "additionalProperties": {"anyOf": [{"type": "integer"}, UNIQUE]}},
    {"prefixItems": [True, UNIQUE], "items": {"type": "array"}},
    {"patternProperties": {"^a": UNIQUE}},
    {"allOf": [{"properties": {"b": {"allOf": [UNIQUE]}}}]},
    {"properties": {"enum": UNIQUE, "a": {"properties": {"type": True, "b": UNIQUE}}}},
]


def read(schema: Any, text: str, cuts: list[int]) -> Reading | None:
    """Through a text in pieces."""
    data, reading = text.encode(), Reading(Places(prepared(schema, keeps_unique=True)).root)
    at: Reading | None = reading
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if at is not None:
            at = at.after(data[start:end])
    return at


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SCHEMAS), VALUES, st.booleans(), st.data())
def test_what_repeats_is_barred(schema: Any, value: Any, spaced: bool, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=None if spaced else (",", ":"))
    n = len(text.encode())
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))
    judge = jsonschema.Draft202012Validator(schema)
    problems = {error.validator for error in judge.iter_errors(value)}
    found = read(schema, text, cuts)
    if not problems:
        assert found is not None
    if "uniqueItems" in problems:
        assert found is None


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(smollm2_tokenizer(), smollm2_tokenizer().vocab_size)


def ids(text: str) -> list[int]:
    return smollm2_tokenizer().encode(text, bos=False)


def after(schema: Any, text: str) -> GrammarState:
    state = compiler().json_schema(schema).start()
    for token in ids(text):
        assert state.n_possible([token]) == 1, text
        state.accept(token)
    return state


def allowed(state: GrammarState) -> set[str]:
    mask = np.unpackbits(state.masks(())[0], bitorder="little")
    return {smollm2_tokenizer().token_bytes(i).decode("utf-8", "replace") for i in np.flatnonzero(mask)}


COLOURS = {**UNIQUE, "items": {"enum": ["red", "rose", "blue"]}}


@pytest.mark.parametrize(
    ("schema", "text", "yes", "no"),
    [
        (COLOURS, '["red", "', {"ro", "blue", "b"}, {"red"}),
        (COLOURS, '["red", "rose", "', {"b", "blue"}, {"r", "ro", "red"}),  # no item left begins with r
        (COLOURS, '["red", "rose", "blue"', {"]"}, {",", ", "}),
        ({**UNIQUE, "items": {"type": "string"}}, '["ab", "ab', {"c"}, {'"', '",', '"]'}),
        ({**UNIQUE, "items": {"type": "integer"}}, "[1, 1", {"0"}, {",", "]"}),
        ({**UNIQUE, "items": {"type": "integer"}}, "[0, ", {"1", "-"}, {"0"}),  # nothing could follow it
        ({**UNIQUE, "items": {"type": "number"}}, "[0, 0", {"."}, {",", "]"}),
        ({**UNIQUE, "items": {"minimum": 3, "maximum": 4, "type": "integer"}}, "[3, ", {"4"}, {"3"}),
        ({"items": {**UNIQUE, "items": {"type": "boolean"}}}, "[[true], [true, ", {"false"}, {"true", "t"}),
    ],
)  # fmt: skip
def test_masks_have_only_what_leads_on(schema: Any, text: str, yes: set[str], no: set[str]) -> None:
    found = allowed(after({"type": "array", **schema}, text))
    assert yes <= found
    assert not no & found


def test_guesses_are_read_as_well() -> None:
    state = after(COLOURS, '["red", "')
    draft = ids('red", "blue"]')
    assert state.n_possible(draft) == 0
    assert not state.masks(draft)[1:].any()
    good = ids('blue", "rose"]')
    assert state.n_possible(good) == len(good)
    masks = state.masks(good)
    assert all(masks[i][token >> 3] >> (token & 7) & 1 for i, token in enumerate(good))


def test_names_of_keywords_are_names_as_well() -> None:
    named = {"properties": dict.fromkeys(("enum", "type", "items", "$defs", "uniqueItems"), UNIQUE)}
    state = after({"type": "object", **named}, '{"enum": ["a", "a')
    assert '"' not in allowed(state)


def test_two_schemas_of_one_grammar_are_two() -> None:
    """Without uniqueItems both are the same to llguidance."""
    items = {"type": "array", "items": {"type": "string"}}
    free, held = compiler().json_schema(items), compiler().json_schema({**items, "uniqueItems": True})
    assert free is not held
    assert '"' in allowed(after(items, '["ab", "ab'))


COLOUR_TOOLS = [
    {"function": {"name": name, "parameters": {"type": "object", "properties": {"c": c}}, "strict": True}}
    for name, c in (("paint", COLOURS), ("mix", {"type": "array", "items": {"type": "string"}}))
]


def after_calls(style: ToolStyle, text: str, *, required: bool) -> GrammarState:
    grammar = call_grammar(COLOUR_TOOLS, style, required=required)
    assert grammar is not None
    state = compiler().calls(grammar).start()
    for token in ids(text):
        assert state.n_possible([token]) == 1, text
        state.accept(token)
    return state


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("style", get_args(ToolStyle))
def test_arguments_of_calls_are_read_as_well(style: ToolStyle, required: bool) -> None:
    begin = {"function": "<function={}>", "json": '{{"name": "{}", "parameters": '}
    end = {"function": "</function>", "json": "}; "}
    opening, closing = (what.get(style, what["json"]) for what in (begin, end))
    first = opening.format("paint") + '{"c": ["red"'
    other = opening.format("mix") + '{"c": ["red", "red"]}' + closing
    for text in (first, other + first, first + "]}" + closing + other + first):
        found = allowed(after_calls(style, text + ', "', required=required))
        assert {"ro", "blue"} <= found
        assert "red" not in found
        whole = allowed(after_calls(style, first + ', "rose", "blue"', required=required))
        assert whole
        assert all(token.startswith("]") for token in whole)
    assert "red" in allowed(after_calls(style, opening.format("mix") + '{"c": ["red", "', required=required))
    if not required:
        talk = 'Once: ["red", "red"] and {"name": "Bob", "c": ["red", "red"]}\n'
        found = allowed(after_calls(style, talk + first + ', "', required=False))
        assert "blue" in found
        assert "red" not in found
