"""Answers held to a form, by requests: JSON schemas, patterns, choices, calls of tools."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import jsonschema
import pytest
from server.conftest import Running

from puna.engine.grammar import GrammarCompiler

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Say something."}],
    "max_tokens": 300,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["llama", "alpaca"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
    },
    "required": ["kind", "age"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "feed", "description": "Feeds.", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "walk", "parameters": {"type": "object", "properties": {}}}}


def ask(server: Running, **changes: Any) -> dict[str, Any]:
    answer = server.post("/v1/chat/completions", {**CHAT, **changes})
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


@pytest.mark.parametrize("seed", range(5))
def test_json_is_valid_under_its_schema(server: Running, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    choice = ask(server, response_format=form, seed=seed, temperature=1)
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    assert choice["finish_reason"] == "stop"


def test_patterns_and_choices(server: Running) -> None:
    text = ask(server, response_format={"type": "regex", "regex": "[a-c]{3,5}x"})["message"]["content"]
    assert re.fullmatch("[a-c]{3,5}x", text)
    form = {"type": "choice", "choices": ["yes", "no"]}
    assert ask(server, response_format=form)["message"]["content"] in ("yes", "no")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "feed"}}])
def test_a_required_call_always_parses(server: Running, choice: Any, seed: int) -> None:
    body = {"tools": [TOOL, OTHER], "tool_choice": choice, "parallel_tool_calls": False, "seed": seed}
    whole = ask(server, temperature=1, **body)
    (call,) = whole["message"]["tool_calls"]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    if call["function"]["name"] == "feed":
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
    assert choice == "required" or call["function"]["name"] == "feed"
    stream = server.post("/v1/chat/completions", {**CHAT, **body, "temperature": 1, "stream": True})
    events = [json.loads(line[6:]) for line in stream.text.split("\n\n")[:-2]]
    deltas = [event["choices"][0]["delta"] for event in events]
    (streamed,) = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert streamed["function"] == call["function"]


def test_what_cannot_be_held_to_is_named(server: Running) -> None:
    for form, said in (
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {"pattern": "a"}}}},
            "'not'",
        ),
        ({"type": "regex", "regex": "("}, "unclosed group"),
        ({"type": "choice", "choices": []}, "at least 1 item"),
    ):
        answer = server.post("/v1/chat/completions", {**CHAT, "response_format": form})
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
    named = {"type": "function", "function": {"name": "fed"}}
    answer = server.post("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": named})
    assert answer.status_code == 400
    assert "did you mean 'feed'" in answer.json()["error"]["message"]


def test_a_hostile_grammar_ends_its_request_at_most(server: Running) -> None:
    """Each of these ended the process, or held it up for minutes, when it was compiled unguarded."""
    chain: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(5000)}
    chain["a5000"] = {"type": "integer", "minimum": 0, "maximum": 9}
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(9000))
    patterns = [{"pattern": f"(a|b|c)*{chr(97 + i % 26)}.{{{i}}}x"} for i in range(30)]
    for form, status in (
        (_schema({"$defs": chain, "$ref": "#/$defs/a0"}), 200),
        ({"type": "lark", "grammar": f'start: r0\n{rules}\nr9000: "x"'}, 200),
        (_schema({"type": "string", "allOf": patterns}), 400),
        (_schema({"type": "integer", "multipleOf": 999983}), 400),
    ):
        answer = server.post("/v1/chat/completions", {**CHAT, "response_format": form})
        assert answer.status_code == status, answer.text
    assert ask(server, response_format={"type": "choice", "choices": ["yes"]})["message"]["content"] == "yes"


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_grammars_are_compiled_beside_the_event_loop(
    server: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    loops: list[object] = []
    compile_regex = GrammarCompiler.regex

    def noted(compiler: GrammarCompiler, pattern: str) -> Any:
        loops.append(asyncio._get_running_loop())
        return compile_regex(compiler, pattern)

    monkeypatch.setattr(GrammarCompiler, "regex", noted)
    form = {"type": "regex", "regex": "[xyz]{2}"}
    body = {**CHAT, "response_format": form} if path.startswith("chat") else {"response_format": form}
    body |= {"model": "tiny", "max_tokens": 9} | ({} if path.startswith("chat") else {"prompt": "the"})
    assert server.post(f"/v1/{path}", body).status_code == 200
    assert loops == [None]


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
