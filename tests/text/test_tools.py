"""Tool calls: published answers, every form, nothing lost, and no difference in how the text is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text.vocabularies import GOLDEN

from puna.core import BadInput
from puna.text.tools import ToolCall, ToolCallParser, parse_tool_calls, tool_names

CASES = json.loads((GOLDEN / "tool_calls.json").read_text(encoding="utf-8"))
TOOLS = ["get_weather", "f", "g", "my-tool", "brave_search", "wolfram_alpha", "code_interpreter"]
NO_CODE = TOOLS[:-1]


def parsed(pieces: str | Sequence[str], tools: Sequence[str] = TOOLS) -> tuple[str, list[tuple[str, Any]]]:
    text, calls = parse_tool_calls(pieces, tools)
    return text, [(call.name, dict(call.arguments)) for call in calls]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_published_answers(case: dict[str, Any], size: int) -> None:
    text = case["text"]
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    content, calls = parsed(pieces, case["tools"])
    assert (content, [[*call] for call in calls]) == (case["content"], case["calls"])


F1 = ("f", {"a": 1})
G = ("g", {})


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        # JSON
        ('{"name": "f", "parameters": {"a": 1}}', "", [F1]),
        ('{"type": "function", "name": "f", "parameters": {"a": 1}}', "", [F1]),
        ('{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}', "", [F1]),
        ('{"function": "f", "parameters": {"a": 1}}', "", [F1]),
        ('{"parameters": {"a": 1}, "name": "f"}', "", [F1]),
        ('[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', "", [F1, G]),
        ('{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', "", [F1, G]),
        ('\n\n{"name": "f", "parameters": {"a": 1}}\n', "", [F1]),
        ('{"name": "f", "parameters": {"a": "line\nbreak"}}', "", [("f", {"a": "line\nbreak"})]),
        # Python
        ("[f(a=1), g()]", "", [F1, G]),
        ("[f(a=1)]\n[g()]", "", [F1, G]),
        ("[f(a={'b': [1, -2.5, None, True], \"c\": null})]", "",
         [("f", {"a": {"b": [1, -2.5, None, True], "c": None}})]),
        ("[f(a=true, b=false, c=(1, 2))]", "", [("f", {"a": True, "b": False, "c": [1, 2]})]),
        ("[f(a='it\\'s ) ] [', b=\"# x\")]", "", [("f", {"a": "it's ) ] [", "b": "# x"})]),
        ("[my-tool(a=1)]", "", [("my-tool", {"a": 1})]),
        # tags
        ('<function=f>{"a": 1}</function>', "", [F1]),
        ('<function=f>{"a": 1}', "", [F1]),
        ("<function=g></function><function=f>\n{\"a\": 1}\n</function>", "", [G, F1]),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', "", [F1]),
        ('<|python_tag|>f(a=1); g()', "", [F1, G]),
        ("<|python_start|>[f(a=1), g()]<|python_end|>", "", [F1, G]),
        ('<|python_tag|><function=f>{"a": 1}</function>', "", [F1]),
        ('<|python_tag|>print("hi")\nf = [1]', "",
         [("code_interpreter", {"code": 'print("hi")\nf = [1]'})]),
        ("<|python_start|>print(1)<|python_end|> done", " done",
         [("code_interpreter", {"code": "print(1)"})]),
        ("<|python_tag|>print(1)<|eom_id|>", "", [("code_interpreter", {"code": "print(1)"})]),
        ("<|python_tag|>{'a': 1}.items()", "", [("code_interpreter", {"code": "{'a': 1}.items()"})]),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}<|eom_id|>', "", [F1]),
        # builtin
        ('brave_search.call(query="gold price")', "", [("brave_search", {"query": "gold price"})]),
        ('<|python_tag|>wolfram_alpha.call(query="pi")', "", [("wolfram_alpha", {"query": "pi"})]),
        ('brave_search.call(query="who said "I (or you) am"?")', "",
         [("brave_search", {"query": 'who said "I (or you) am"?'})]),
        # with text
        ("Sure.\n[f(a=1)]", "Sure.\n", [F1]),
        ("Sure: <function=g></function> Done.", "Sure:  Done.", [G]),
        ('{"name": "g", "parameters": {}}, and that is it', ", and that is it", [G]),
        ("<function=g></function>\n<fu", "\n<fu", [G]),
    ],
)  # fmt: skip
def test_calls(text: str, content: str, calls: list[Any]) -> None:
    assert parsed(text) == (content, calls)
    assert parsed(list(text)) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "Hello!", "", " \n", "[1, 2]", "[f]", "f(a=1)", "[f(1)]", "[unknown(a=1)]", "[f(a=1), unknown()]",
        '{"answer": {"name": "f", "parameters": {}}}', '[{"a": 1}, {"name": "f", "parameters": {}}]',
        '[1, {"name": "f", "parameters": {}}]', '{"name": "Bob", "parameters": {}}', '{"name": "f"}',
        '{"name": "f", "parameters": [1]}', '{"name": "f", "parameters": {"a": 1}', "[f(a=1)",
        '{"name": "f", "parameters": {"a": NaN}}', '{"name": "f", "parameters": {"a": "\\ud800"}}',
        "[f(a={1, 2})]", "[f(a=open('x'))]", "[f(a=1e999)]", "[f(**x)]", "[f(a=b'x')]", "[f(a=1)(b=2)]",
        '<function=f>{"a": </function>', "<function=h>{}</function>", "<function=f", "a < b <function",
        'rebrave_search.call(query="x")', "brave_search.call(query=", "{", "[", "<", '{"', '{"na', "{}",
        "{x} [y] (z)", '<|python_tag|>{"name": "f", "parameters": {"a":',
        "<|python", '{"type": "object", "name": "f", "parameters": {}}',
        "[f(a=" + "[" * 10_000 + "]" * 10_000 + ")]",
        '{"name": "f", "parameters": {"a": ' + "[" * 20_000 + "]" * 20_000 + "}}",
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parsed(text) == (text, [])
    assert parsed(list(text)) == (text, [])


def test_a_tag_without_a_code_interpreter_stays_text() -> None:
    assert parsed("<|python_tag|>print(1)", NO_CODE) == ("<|python_tag|>print(1)", [])
    assert parsed('<|python_tag|>{"name": "g", "parameters": {}} so', NO_CODE) == (" so", [G])


def test_no_tools_no_calls() -> None:
    text = '<|python_tag|>{"name": "f", "parameters": {}} [g()] <function=f>{}</function>'
    assert parsed(text, []) == (text, [])


PIECES = st.sampled_from(
    [
        '{"name": "f", "parameters": {"a": 1}}', '{"name": "nobody", "arguments": {}}', "[f(a=1), g()]",
        '[{"name": "g", "arguments": {"x": "]}\\""}}]', "<function=f>", '{"a": "<|python_tag|>"}',
        "</function>", "<|python_tag|>", "<|python_start|>", "<|python_end|>", "<|eom_id|>",
        "brave_search", ".call(",
        'brave_search.call(query="a")', '"', "'", "\\", "[", "]", "{", "}", "(", ")", ",", ";", " ", "\n",
        "f(", "g()", "name", ":",
        "text", "[f(a='", "{'", '{"', "=", "1", "é", "<",
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=10), st.data(), st.sampled_from([TOOLS, NO_CODE]))
def test_cuts_make_no_difference(parts: list[str], data: st.DataObject, tools: list[str]) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parsed(text, tools)
    assert parsed(pieces, tools) == whole
    assert parsed(list(text), tools) == whole
    if not whole[1]:
        assert whole[0] == text


def test_text_is_given_at_once() -> None:
    parser = ToolCallParser(TOOLS)
    assert parser.push("It is 5 < 6") == ["It is 5 < 6"]
    assert parser.push(' {"city": "SF",') == [' {"city": "SF",']
    assert parser.push(' "f": [f(a=1)]}') == [' "f": [f(a=1)]}']
    assert parser.push(" [f(a=1") == [" "]
    assert parser.push(")]") == [ToolCall("f", {"a": 1})]
    assert parser.push(" ok <funct") == [" ok "]
    assert parser.flush() == ["<funct"]


def test_a_long_argument_in_small_pieces() -> None:
    body = '{"name": "f", "parameters": {"a": "' + "x" * 50_000 + '"}}'
    assert parsed([body[i : i + 3] for i in range(0, len(body), 3)]) == ("", [("f", {"a": "x" * 50_000})])


def test_names_of_tools() -> None:
    definition = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert tool_names(["g", definition, {"name": "h"}]) == {"f", "g", "h"}
    with pytest.raises(BadInput, match=r'a tool must be a name or {"name": …, "parameters": …}, found {\'x'):
        tool_names([{"x": 1}])


def test_arguments_as_json() -> None:
    assert ToolCall("f", {"a": "ü", "b": None}).arguments_json == '{"a": "ü", "b": null}'
