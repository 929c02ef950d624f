"""Meta's llama-api-client against a server, with the Python API of the same model as the oracle."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import llama_api_client
import pytest
from llama_api_client import LlamaAPIClient
from llm.tiny_vision import png
from server.conftest import Running, Start, open_accounts
from server.test_operations import Slow

from puna.server.config import ServerConfig
from puna.server.tenants.limits import Limits

ASK: dict[str, Any] = {
    "model": "tiny",
    "max_completion_tokens": 12,
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}],
    "temperature": 0,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 30}, "kind": {"enum": ["a", "b"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "feed", "parameters": SCHEMA}}]
_clients: list[LlamaAPIClient] = []


def client(server: Running, key: str = "none") -> LlamaAPIClient:
    made = LlamaAPIClient(
        base_url=f"{server.url}/llama/v1",
        api_key=key,
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    )
    _clients.append(made)
    return made


@pytest.fixture(scope="module", autouse=True)
def _close_clients() -> Iterator[None]:
    yield
    for made in _clients:
        made.close()


def text_of(found: Any) -> str:
    content = found.completion_message.content
    assert content.type == "text"
    return str(content.text)


def metrics_of(metrics: Any) -> dict[str, float]:
    return {item.metric: item.value for item in metrics}


def test_a_chat_is_answered_as_by_the_python_api(server: Running) -> None:
    expected = server.llm.chat(ASK["messages"], temperature=0, max_tokens=12)
    found = client(server).chat.completions.create(**ASK)
    assert text_of(found) == expected.text
    assert found.completion_message.stop_reason == "length"
    n_prompt = expected.n_prompt
    assert metrics_of(found.metrics) == {
        "num_prompt_tokens": n_prompt, "num_completion_tokens": 12, "num_total_tokens": n_prompt + 12,
    }  # fmt: skip


@pytest.mark.parametrize("changes", [
    {},
    {"tools": TOOLS, "tool_choice": "required", "max_completion_tokens": 200},
])  # fmt: skip
def test_a_stream_says_the_same_as_a_whole_answer(server: Running, changes: dict[str, Any]) -> None:
    body = {**ASK, **changes}
    whole = client(server).chat.completions.create(**body)
    chunks = [*client(server).chat.completions.create(**body, stream=True)]
    kinds = [chunk.event.event_type for chunk in chunks]
    assert (kinds[0], kinds[-2:]) == ("start", ["complete", "metrics"])
    assert set(kinds[1:-2]) == {"progress"}
    deltas = [chunk.event.delta for chunk in chunks]
    assert "".join(delta.text for delta in deltas if delta.type == "text") == text_of(whole)
    calls = [delta.function for delta in deltas if delta.type == "tool_call"]
    expected = whole.completion_message.tool_calls or []
    assert [call.to_dict() for call in calls] == [call.function.to_dict() for call in expected]
    assert bool(calls) == bool(changes)
    assert chunks[-2].event.stop_reason == whole.completion_message.stop_reason
    assert metrics_of(chunks[-1].event.metrics) == metrics_of(whole.metrics)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "feed"}}])
def test_calls_of_tools_and_their_results(server: Running, choice: Any) -> None:
    body = {**ASK, "tools": TOOLS, "max_completion_tokens": 200}
    message = client(server).chat.completions.create(**body, tool_choice=choice).completion_message
    assert message.stop_reason == "tool_calls"
    assert message.tool_calls
    for call in message.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    messages: Any = [
        *ASK["messages"],
        message.to_dict(),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"},
    ]
    turns = [*ASK["messages"], {"role": "assistant", "content": ""}, {"role": "tool", "content": "done"}]
    again = client(server).chat.completions.create(**{**body, "messages": messages, "tool_choice": "none"})
    expected = server.llm.chat(turns, temperature=0, max_tokens=200)
    assert text_of(again) == expected.text
    assert metrics_of(again.metrics)["num_prompt_tokens"] == expected.n_prompt


def test_answers_follow_a_schema(server: Running) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
    found = client(server).chat.completions.create(
        **{**ASK, "max_completion_tokens": 200}, response_format=form
    )
    jsonschema.validate(json.loads(text_of(found)), SCHEMA)


def test_pictures(seeing: Running) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    content: Any = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    found = client(seeing).chat.completions.create(
        **{**ASK, "messages": [{"role": "user", "content": content}]}
    )
    turns = [{"role": "user", "content": [content[0], {"type": "image", "image": png()}]}]
    expected = seeing.llm.chat(turns, temperature=0, max_tokens=12)
    assert metrics_of(found.metrics)["num_prompt_tokens"] == expected.n_prompt
    content[1]["image_url"]["url"] = "http://example.com/a.png"
    with pytest.raises(llama_api_client.BadRequestError, match="images from no host"):
        client(seeing).chat.completions.create(**{**ASK, "messages": [{"role": "user", "content": content}]})


def test_models(server: Running) -> None:
    assert [model.id for model in client(server).models.list()] == ["tiny"]
    assert client(server).models.retrieve("tiny").object == "model"
    with pytest.raises(llama_api_client.NotFoundError, match="there is no model 'big'"):
        client(server).models.retrieve("big")


def test_errors_are_typed(server: Running, start: Start, tmp_path: Any) -> None:
    ours = client(server)
    with pytest.raises(llama_api_client.NotFoundError, match="did you mean 'tiny'"):
        ours.chat.completions.create(**{**ASK, "model": "tinny"})
    with pytest.raises(llama_api_client.BadRequestError, match="no field 'max_tokens'; did you mean"):
        ours.chat.completions.create(**ASK, extra_body={"max_tokens": 3})
    with pytest.raises(llama_api_client.BadRequestError, match=r"has 6\d\d tokens"):
        ours.chat.completions.create(**{**ASK, "messages": [{"role": "user", "content": "a" * 600}]})
    with pytest.raises(llama_api_client.NotFoundError, match="moderations need a guard model"):
        ours.moderations.create(messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(llama_api_client.InternalServerError, match="keeps no uploads"):
        ours.uploads.create(bytes=3, filename="a.png", mime_type="image/png", purpose="attachment")
    accounts = open_accounts(tmp_path, requires_keys=True)
    shop = start(ServerConfig(port=0), accounts)
    with pytest.raises(llama_api_client.AuthenticationError, match="unknown, expired or revoked"):
        client(shop).chat.completions.create(**ASK)
    key = accounts.keys.create("test", "acme", limits=Limits(requests_per_minute=1))[1]
    assert client(shop, key).chat.completions.create(**ASK).id
    with pytest.raises(llama_api_client.RateLimitError):
        client(shop, key).chat.completions.create(**ASK)


def test_an_answer_that_breaks_off_is_an_error(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(server, monkeypatch)
    slow.close()
    chunks = client(server).chat.completions.create(**{**ASK, "max_completion_tokens": 100}, stream=True)
    assert next(chunks).event.event_type == "start"
    slow.error = MemoryError("no more")
    slow.open()
    with pytest.raises(llama_api_client.APIError, match="MemoryError: no more"):
        list(chunks)
