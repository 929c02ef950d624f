"""Requests that were good, with a few values changed at random: answers or sentences, never a failure."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from server.conftest import Running

from puna.server.strict import Route

JSON = {"content-type": "application/json"}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORM: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "feed", "parameters": SCHEMA, "strict": True},
}
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "feed", "arguments": '{"n": 1}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "t"}]},
    {"role": "assistant", "content": "y", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "r"},
]
CHAT: dict[str, Any] = {
    "model": "tiny", "messages": TURNS, "tools": [TOOL], "tool_choice": "required", "stream": False,
    "temperature": 0.5, "top_p": 0.5,
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**CHAT, "max_tokens": 3, "stop": ["q"], "logit_bias": {"5": 1}, "seed": 1},
    "/llama/v1/chat/completions": {**CHAT, "max_completion_tokens": 3, "response_format": FORM, "top_k": 2},
    "/v1/completions": {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 2, "response_format": FORM},
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 3,
        "system": [{"type": "text", "text": "b"}],
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "x"}, {"type": "text", "text": "z"},
            ]},
        ],
        "tools": [{"name": "feed", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"},
        "stop_sequences": ["q"],
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    },
}  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 1e308, 10**30, "", "x", "\ud83d", "\x00", [], {}, [[]], {"type": "text"}, "tool", 1.5,
    {"type": "text", "text": "h"}, {"type": "tool", "name": "feed"}, "<|im_end|>", "a" * 2000,
    {"a": {"b": [1, {"c": None}]}},
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key or index in it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def changed(body: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    made = copy.deepcopy(body)
    for _ in range(chance.randint(1, 3)):
        around, key = chance.choice([*places(made)])
        what = chance.random()
        if what < 0.2:
            del around[key]
        elif what < 0.3 and isinstance(around, dict):
            around[chance.choice(["typ", "x", "cache_control", "\ud83d"])] = copy.deepcopy(
                chance.choice(VALUES)
            )
        else:
            around[key] = copy.deepcopy(chance.choice(VALUES))
        if not [*places(made)]:
            break
    return made


@pytest.mark.parametrize("path", BODIES)
def test_no_request_makes_the_server_fail(server: Running, path: str) -> None:
    chance = random.Random(path)
    statuses: set[int] = set()
    with httpx.Client(timeout=60) as client:
        for _ in range(150):
            body = changed(BODIES[path], chance)
            answer = client.post(server.url + path, content=json.dumps(body), headers=JSON)
            statuses.add(answer.status_code)
            assert answer.status_code in (200, 400, 404), (body, answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
    assert {200, 400} <= statuses
    assert not server.service.calls


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"\ud83d": 1}, "half a surrogate pair (U+D83D)"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "half a surrogate pair (U+D83D)"),
        ({"tools": [{**TOOL, "function": {"name": "feed", "parameters": {"type": 5}}}]}, "type"),
    ],
)
def test_what_once_made_it_fail(server: Running, changes: dict[str, Any], said: str) -> None:
    body = json.dumps({**BODIES["/v1/chat/completions"], **changes})
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=JSON)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_every_path_reads_json_strictly(server: Running) -> None:
    routers = [getattr(part, "original_router", None) for part in server.app.routes]
    parts = [*server.app.routes, *(route for router in routers if router for route in router.routes)]
    routes = [part for part in parts if isinstance(part, APIRoute) and part.include_in_schema]
    assert {"/v1/chat/completions", "/v1/load_lora_adapter", "/admin/keys"} <= {it.path for it in routes}
    assert [route.path for route in routes if not isinstance(route, Route)] == []


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_an_adapter_has_one_name(server: Running, path: str) -> None:
    body = b'{"lora_name": "a", "lora_name": "b", "lora_path": "/none"}'
    answer = httpx.post(server.url + path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert "the field 'lora_name' twice" in answer.text
