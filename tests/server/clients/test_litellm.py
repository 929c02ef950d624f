"""litellm, which speaks four APIs of this server: each is asked for the same."""

from __future__ import annotations

import base64
import json
from importlib.util import find_spec
from typing import Any

import pytest
from llm.tiny_vision import png
from server.clients.conftest import ANIMAL, HELLO
from server.conftest import Running

if find_spec("litellm") is None:  # imported by the first test, since it takes seconds
    pytest.skip("needs litellm (make test-clients)", allow_module_level=True)
# what it says of its own code
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning")]

# route -> where its API begins
ROUTES = {"openai": "/v1", "meta_llama": "/v1", "anthropic": "", "ollama_chat": "", "ollama": ""}
EVERY = pytest.mark.parametrize("route", ROUTES)
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"type": "string", "enum": ["llama", "alpaca"]}, "age": {"type": "integer"}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}


def ask(server: Running, route: str, content: Any, **more: Any) -> Any:
    import litellm

    messages = content if isinstance(content, list) and "role" in content[0] else [_user(content)]
    return litellm.completion(
        **{"model": f"{route}/tiny", "temperature": 0, "max_tokens": 300, "max_retries": 0, **more},
        messages=messages,
        api_base=server.url + ROUTES[route],
        api_key="none",
        timeout=60,
    )


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@EVERY
def test_an_answer_and_its_stream(talker: Running, route: str) -> None:
    found = ask(talker, route, "Hi")
    assert found.choices[0].message.content == HELLO
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens == len(talker.llm.tokenizer.encode(HELLO)) + 1
    pieces = [piece.choices[0].delta.content or "" for piece in ask(talker, route, "Hi", stream=True)]
    assert "".join(pieces) == HELLO
    assert len([piece for piece in pieces if piece]) > 3


@pytest.mark.parametrize("route", [route for route in ROUTES if route != "ollama"])  # asks by its prompt
def test_tools_are_called_and_answered(talker: Running, route: str) -> None:
    question = _user("Weather in Lima and Cusco?")
    found = ask(talker, route, [question], tools=TOOLS)
    pieces = [*ask(talker, route, [question], tools=TOOLS, stream=True)]
    for calls in (found.choices[0].message.tool_calls, _streamed(route, pieces)):
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
            ("weather", {"city": "Lima"}),
            ("weather", {"city": "Cusco"}),
        ]
    assert found.choices[0].finish_reason == pieces[-1].choices[0].finish_reason == "tool_calls"
    results = [
        {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "sunny"}
        for call in found.choices[0].message.tool_calls
    ]
    messages = [question, found.choices[0].message.model_dump(exclude_none=True), *results]
    assert ask(talker, route, messages, tools=TOOLS).choices[0].message.content == "It is sunny there."


def _streamed(route: str, pieces: list[Any]) -> list[Any]:
    import litellm

    if route == "ollama_chat":  # litellm's builder knows no index of Ollama's calls, and joins them all
        return [call for piece in pieces for call in piece.choices[0].delta.tool_calls or ()]
    calls: list[Any] = litellm.stream_chunk_builder(pieces).choices[0].message.tool_calls
    return calls


@EVERY
def test_answers_follow_a_schema(talker: Running, route: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    found = ask(talker, route, "Show an animal.", response_format=form)
    assert json.loads(found.choices[0].message.content) == json.loads(ANIMAL)


@EVERY
def test_pictures(talker: Running, route: str) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    assert ask(talker, route, content).choices[0].message.content == "I see 1 pictures."


@EVERY
def test_errors_are_typed(talker: Running, route: str) -> None:
    import litellm

    errors = litellm.exceptions
    too_long = errors.BadRequestError if "ollama" in route else errors.ContextWindowExceededError
    with pytest.raises(too_long, match="the context of this model holds 2048"):
        ask(talker, route, "word " * 3000)
    with pytest.raises(errors.NotFoundError, match="there is no model 'big'"):
        ask(talker, route, "Hi", model=f"{route}/big")
    with pytest.raises(errors.BadRequestError, match="temperature"):
        ask(talker, route, "Hi", temperature=-1)
