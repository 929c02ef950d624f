"""Calls of tools over HTTP: what streams is what comes at once, and what the model said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from llm.tiny_llm import write_tiny_llm
from server.conftest import Running, Start, open_accounts
from server.structured.scripted import Script
from text.call_cases import TOOLS, Case, cases

from puna.server.config import ServerConfig

# The tiny model's vocabulary is of bytes: every character of more than one comes in pieces.
TAGS = ("<|python_tag|>", "<|python_start|>", "<|python_end|>")
DEFINITIONS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in TOOLS
]
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Call."}],
    "temperature": 0,
    "tools": DEFINITIONS,
}
CASES = [case for case in cases(2000) if len(case.text) < 80][::4]


@pytest.fixture(scope="module")
def server(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    folder = tmp_path_factory.mktemp("tags")
    return start(
        ServerConfig(port=0), open_accounts(folder), path=write_tiny_llm(folder / "t.gguf", control=TAGS)
    )


@pytest.fixture
def script(server: Running, monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(server, monkeypatch)


Said = tuple[str, list[tuple[str, Any]], str]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def at_once(client: httpx.Client) -> Said:
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return message["content"] or "", [_read(call) for call in calls], choice["finish_reason"]


def streamed(client: httpx.Client) -> Said:
    """Put together as OpenAI's clients do: by the index of a call."""
    answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.status_code == 200, answer.text
    content, finish = "", ""
    calls: dict[int, dict[str, str]] = {}
    events = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    for event in map(json.loads, events):
        [choice] = event["choices"]
        content += choice["delta"].get("content") or ""
        finish = choice["finish_reason"] or finish
        for call in choice["delta"].get("tool_calls", ()):
            found = calls.setdefault(call["index"], {"name": "", "arguments": ""})
            found["name"] += call["function"].get("name", "")
            found["arguments"] += call["function"].get("arguments", "")
    return content, [_read(calls[i]) for i in sorted(calls)], finish


def _read(call: dict[str, str]) -> tuple[str, Any]:
    return call["name"], json.loads(call["arguments"])


def check(client: httpx.Client, script: Script, case: Case) -> None:
    script.say(case.text)
    said = at_once(client)
    script.say(case.text)
    assert streamed(client) == said, case
    if case.is_whole:
        expected = "tool_calls" if case.calls else "stop"
        assert said == (case.content, case.calls, expected), case


def test_streaming_is_what_comes_at_once(client: httpx.Client, script: Script) -> None:
    assert len(CASES) > 200
    for case in CASES:
        check(client, script, case)


def test_code_for_the_interpreter_is_known_by_its_token(client: httpx.Client, script: Script) -> None:
    script.say("<|python_tag|>print(1)")
    assert script._ids[0] == script.tokenizer.id("<|python_tag|>")
    assert at_once(client) == ("", [("code_interpreter", {"code": "print(1)"})], "tool_calls")


def test_no_tool_is_called_where_none_may_be(
    client: httpx.Client, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHAT, "tool_choice", "none")
    script.say('{"name": "f", "parameters": {}}')
    assert at_once(client) == ('{"name": "f", "parameters": {}}', [], "stop")
    script.say('{"name": "f", "parameters": {}}')
    assert streamed(client) == ('{"name": "f", "parameters": {}}', [], "stop")


def test_without_tools_control_tokens_are_no_text(
    client: httpx.Client, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(CHAT, "tools")
    script.say('<|python_tag|>{"name": "f", "parameters": {}}<|python_end|>')
    assert at_once(client) == ('{"name": "f", "parameters": {}}', [], "stop")
