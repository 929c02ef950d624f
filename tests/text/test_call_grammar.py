"""Whatever a grammar of calls lets a model say is read as calls of the tools, valid under their schemas."""

from __future__ import annotations

import random
from functools import cache
from typing import Any, ClassVar

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from text.vocabularies import smollm2

from puna.core import BadInput, BadValue
from puna.text.call_grammar import CallGrammar, call_grammar, call_style
from puna.text.formats.base import ToolStyle
from puna.text.tokenizer import Tokenizer
from puna.text.tools import parse_tool_calls

STYLES: list[ToolStyle] = ["json", "pythonic", "function"]
CLOSERS = frozenset(b"\"}])>,:'")
END = 256

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "metric": {"type": "boolean"},
            },
            "required": ["city"],
        },
    },
}


class Bytes:
    """A vocabulary of single bytes, for llguidance."""

    tokens: ClassVar = [bytes([i]) for i in range(256)] + [b"</s>"]
    special_token_ids: ClassVar = [END]
    eos_token_id, bos_token_id = END, None

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def vocabulary() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(Bytes()))


def said(grammar: CallGrammar, seed: int, limit: int = 3000) -> str:
    """A random text of the grammar, leaning to close what is open."""
    matcher, rng, text = LLMatcher(vocabulary(), grammar.text, log_level=0), random.Random(seed), bytearray()
    assert not matcher.is_error(), matcher.get_error()
    while not matcher.is_stopped():
        bits = matcher.compute_bitmask()
        allowed = [i for i in range(257) if bits[i >> 3] >> (i & 7) & 1]
        assert allowed, bytes(text)
        if END in allowed and (rng.random() < 0.3 or len(text) > limit):
            break
        closing = [i for i in allowed if i in CLOSERS]
        choice = rng.choice(closing if closing and rng.random() < 0.4 + len(text) / 600 else allowed)
        if choice == END:
            break
        text.append(choice)
        assert matcher.consume_token(choice), matcher.get_error()
    return text.decode()


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    leaves = st.sampled_from(
        [
            {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"},
            {"type": "null"},
            {"enum": ["a", 'b"', "c'\\", 1, None, True]}, {"const": {"x": [False]}},
            {"type": ["null", "string"]},
            {"type": "string", "maxLength": 4}, {"type": "integer", "minimum": 1, "maximum": 30},
            {"$ref": "#/$defs/shared"},
        ]
    )  # fmt: skip
    lists = leaves.map(lambda item: {"type": "array", "items": item, "maxItems": 3})
    inner = st.dictionaries(st.sampled_from(["x", "y z", "é"]), leaves, max_size=2).map(
        lambda found: {"type": "object", "properties": found, "additionalProperties": False}
    )
    return st.one_of(leaves, lists, inner)


@st.composite
def tool(draw: st.DrawFn, name: str, *, strict: bool) -> dict[str, Any]:
    names = ["a", "b_1", "city", "class", "with-dash", "ö"]
    properties = draw(st.dictionaries(st.sampled_from(names), schemas(), max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required,
        "$defs": {"shared": {"type": "boolean"}},
    }
    function: dict[str, Any] = {"name": name, "parameters": parameters}
    return {"type": "function", "function": {**function, "strict": True} if strict else function}


def check(text: str, tools: list[dict[str, Any]], *, may_talk: bool = False, most: int = 1000) -> int:
    by_name = {item["function"]["name"]: item["function"]["parameters"] for item in tools}
    rest, calls = parse_tool_calls(text, tools)
    assert may_talk or (rest == "" and 1 <= len(calls) <= most), text
    for call in calls:
        jsonschema.Draft202012Validator(by_name[call.name]).validate(call.arguments)
    return len(calls)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), style=st.sampled_from(STYLES), parallel=st.booleans(), seed=st.integers(0, 999))
def test_required_calls_are_always_read(
    data: st.DataObject, style: ToolStyle, parallel: bool, seed: int
) -> None:
    names = data.draw(
        st.lists(st.sampled_from(["f", "f2", "get.it", "a-b"]), min_size=1, max_size=3, unique=True)
    )
    tools = [data.draw(tool(name, strict=False)) for name in names]
    grammar = call_grammar(tools, style, parallel=parallel)
    assert grammar is not None
    check(said(grammar, seed), tools, most=1000 if parallel else 1)
    named = call_grammar(tools, style, named=names[-1], parallel=False)
    assert named is not None
    text = said(named, seed)
    check(text, tools, most=1)
    assert parse_tool_calls(text, tools)[1][0].name == names[-1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), style=st.sampled_from(STYLES), seed=st.integers(0, 999))
def test_strict_tools_are_called_well_if_at_all(data: st.DataObject, style: ToolStyle, seed: int) -> None:
    tools = [data.draw(tool(name, strict=True)) for name in ("f", "g")]
    grammar = call_grammar(tools, style, required=False)
    assert grammar is not None
    check(said(grammar, seed, 200), tools, may_talk=True)


TEXTS = ["", "Hello.", 'It is {"name": "Bob"}.', "[1, 2]", "def f(x): return [f(x)]", "<b>é</b>", "a\n\nb"]
CALLS = {
    "json": '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
    "pythonic": '[get_weather(city="Oslo", metric=True)]',
    "function": '<function=get_weather>{"city": "Oslo", "metric": true}</function>',
}
STRICT = {"function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]


def fits(grammar: CallGrammar | None, text: str) -> bool:
    """Whether the grammar allows all of a text as a whole answer."""
    assert grammar is not None
    matcher = LLMatcher(vocabulary(), grammar.text, log_level=0)
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", TEXTS)
def test_with_strict_tools_text_stays_free(style: ToolStyle, text: str) -> None:
    assert fits(call_grammar([STRICT], style, required=False), text)
    assert not fits(call_grammar([STRICT], style), text)


@pytest.mark.parametrize("style", STYLES)
def test_calls_as_the_models_were_trained_to_write_them(style: ToolStyle) -> None:
    call = CALLS[style]
    assert fits(call_grammar([STRICT], style), call)
    assert fits(call_grammar([STRICT], style, required=False), call)
    assert fits(call_grammar([STRICT], style, required=False), f"I will look.\n{call}")
    assert not fits(call_grammar([STRICT], style, required=False), call.replace("city", "town"))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "text",
    [
        '{"name":"get_weather", "parameters": {"town": 1}}',
        '{ "name": "get_weather", "parameters": {"town": 1}}',
        '{"type": "function", "name": "get_weather", "parameters": {}}',
        '{"function": "get_weather", "parameters": {"town": 1}}',
        "<function=get_weather>{}</function>",
        "[get_weather(town=1)]",
        "[ get_weather(town=1)]",
        '<|python_tag|>{"name": "get_weather", "parameters": {}}',
    ],
)
def test_no_other_form_of_call_slips_through(style: ToolStyle, text: str) -> None:
    """What tools.py would read as a call with arguments that the schema forbids is no text either."""
    assert parse_tool_calls(text, [STRICT])[1]
    assert not fits(call_grammar([STRICT], style, required=False), text)
    assert not fits(call_grammar([STRICT], style, required=False), f"Look: {text}")


def test_tools_that_are_not_strict_leave_the_answer_free() -> None:
    assert call_grammar([WEATHER], "json", required=False) is None


@pytest.mark.parametrize("style", STYLES)
def test_beside_a_strict_tool_others_take_any_arguments(style: ToolStyle) -> None:
    other = {"function": {"name": "now", "parameters": {"type": "object", "properties": {"zone": {}}}}}
    call = CALLS[style].replace("get_weather", "now").replace("city", "anything")
    assert fits(call_grammar([STRICT, other], style, required=False), call)


def test_bad_tools_are_refused() -> None:
    with pytest.raises(BadValue, match="did you mean 'get_weather'"):
        call_grammar([WEATHER], "json", named="get_wether")
    with pytest.raises(BadValue, match="found none"):
        call_grammar([], "json")
    with pytest.raises(BadInput, match="name of letters"):
        call_grammar([{"function": {"name": "a b"}}], "json")
    with pytest.raises(BadInput, match="name of letters"):
        call_grammar(["now"], "json")  # type: ignore[list-item]
    with pytest.raises(BadInput, match="JSON schema"):
        call_grammar([{"name": "f", "parameters": [1]}], "json")


@pytest.mark.parametrize(
    ("chat_format", "style"),
    [("llama3.1", "json"), ("llama3.2", "pythonic"), ("llama3.3", "pythonic"), ("llama4", "pythonic"),
     ("llama3", "json"), ("chatml", "json"), (None, "json")],
)  # fmt: skip
def test_the_style_is_what_the_format_was_trained_on(chat_format: str | None, style: str) -> None:
    assert call_style(Tokenizer.from_gguf(smollm2()), chat_format) == style


def test_the_style_of_a_file_is_that_of_its_template() -> None:
    for template, style in [
        ("… <function=example>", "function"),
        ("[func_name1(params", "pythonic"),
        ("", "json"),
    ]:
        assert call_style(Tokenizer.from_gguf(smollm2(chat_template=template))) == style
