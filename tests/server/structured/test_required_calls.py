"""650 answers of noise that are held to calls of tools: all are calls, in every format that models know."""

from __future__ import annotations

import random
from functools import cache
from typing import Any, get_args

import jsonschema
import pytest
from server.structured.answers import answer
from server.structured.schemas import DEFINITIONS, WORDS, Schema, schema
from text.vocabularies import smollm2, smollm2_tokenizer

from puna.engine.grammar import GrammarCompiler
from puna.text.call_grammar import call_grammar, call_style
from puna.text.formats.base import ToolStyle
from puna.text.tokenizer import Tokenizer
from puna.text.tools import parse_tool_calls

# How each model is told to call: by a builder's name, or by its own template.
FORMATS = ("llama3.1", "llama3.2", "llama3.2-vision", "llama3.3", "llama4", "chatml")
TEMPLATES = {
    "template in JSON": "{{ tools | tojson }}",
    "template in Python": "[func_name1(params_name1=params_value1)]",
    "template with tags": "<function=example_function_name>",
}
EXPECTED: dict[str, ToolStyle] = {
    "llama3.1": "json", "llama3.2": "pythonic", "llama3.2-vision": "json", "llama3.3": "pythonic",
    "llama4": "pythonic", "chatml": "json", "template in JSON": "json", "template in Python": "pythonic",
    "template with tags": "function",
}  # fmt: skip
MODES = ("required", "required, one", "named", "named, several", "auto, strict", "auto, one")


@cache
def compiler() -> GrammarCompiler:
    tokenizer = smollm2_tokenizer()
    return GrammarCompiler(tokenizer, tokenizer.vocab_size)


FORMATTED = {"at": "date-time", "from": "email", "link": "uri", "number": "uuid"}


def style_of(name: str) -> ToolStyle:
    if name in TEMPLATES:
        return call_style(Tokenizer.from_gguf(smollm2(chat_template=TEMPLATES[name])))
    return call_style(smollm2_tokenizer(), name)


def parameters(rng: random.Random) -> Schema:
    names = rng.sample(["city", "a", "b_1", *WORDS], rng.randrange(4))
    made: Schema = {}
    for name in names:
        made[name] = schema(rng, 1)
    required = [name for name in names if rng.random() < 0.5]
    return {"type": "object", "properties": made, "required": required, "$defs": DEFINITIONS}


def tools_of(rng: random.Random, strict: bool) -> list[dict[str, Any]]:
    names = rng.sample(["get_weather", "f", "f2", "get.it", "a-b"], rng.randrange(1, 4))
    extra = {"strict": True} if strict else {}
    return [
        {"type": "function", "function": {"name": name, "parameters": parameters(rng), **extra}}
        for name in names
    ]


def check(text: str, tools: list[dict[str, Any]], mode: str, named: str | None) -> int:
    content, calls = parse_tool_calls(text, tools)
    by_name = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for call in calls if mode != "auto, one" else ():
        jsonschema.Draft202012Validator(by_name[call.name]).validate(dict(call.arguments))
    if not mode.startswith("auto"):
        assert content == "", text
        assert calls, text
    if mode in ("required, one", "named"):
        assert len(calls) == 1, text
    if mode == "auto, one":
        assert len(calls) <= 1, text
    if named is not None:
        assert {call.name for call in calls} == {named}
    return len(calls)


@pytest.mark.parametrize("form", [*FORMATS, *TEMPLATES])
def test_calls_that_have_to_be_are_calls(form: str) -> None:
    style = style_of(form)
    assert style == EXPECTED[form]
    n_whole, rng = 0, random.Random(form)
    for case in range(18):
        mode = MODES[case % len(MODES)]
        tools = tools_of(rng, strict=mode == "auto, strict")
        named = tools[-1]["function"]["name"] if mode.startswith("named") else None
        grammar = call_grammar(
            tools, style, named=named, parallel=mode not in ("required, one", "named", "auto, one"),
            required=not mode.startswith("auto"),
        )  # fmt: skip
        assert grammar is not None
        compiled = compiler().calls(grammar)
        for seed in range(4):
            said = answer(compiled, smollm2_tokenizer(), 100 * case + seed, 500)
            if said is not None:
                check(said.decode(), tools, mode, named)
                n_whole += 1
    assert n_whole > 40


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("style", get_args(ToolStyle))
def test_many_strict_tools_are_not_too_many(style: ToolStyle, parallel: bool) -> None:
    """What it takes to tell text from calls does not grow with their number."""
    properties = {name: {"type": "string", "format": form} for name, form in FORMATTED.items()}
    arguments = {"type": "object", "properties": properties, "required": [*properties]}
    tools = [
        {"function": {"name": f"{verb}_the_{word}", "parameters": arguments, "strict": True}}
        for verb in ("get", "change", "delete")
        for word in ("weather", "mail", "event", "file", "flight", "note", "price", "task")
    ]
    grammar = call_grammar(tools, style, required=False, parallel=parallel)
    assert grammar is not None
    said = [answer(compiler().calls(grammar), smollm2_tokenizer(), seed, 300) for seed in range(4)]
    for text in filter(None, said):
        check(text.decode(), tools, "auto, strict" if parallel else "auto, one", None)
