"""Anthropic's own client against a server, with the Python API of the same model as the oracle."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import anthropic
import httpx
import jsonschema
import pytest
from anthropic import Anthropic
from llm.tiny_vision import png
from pydantic import BaseModel
from server.conftest import Running, Start, open_accounts
from server.test_operations import Slow, until

from puna.server.config import ServerConfig
from puna.server.tenants.limits import Limits

GREEDY: dict[str, Any] = {"temperature": 0}
ASK: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 12,
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "Name a colour."}],
    "extra_body": GREEDY,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 30}, "kind": {"enum": ["a", "b"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"name": "feed", "description": "Feeds.", "input_schema": SCHEMA},
    {"name": "walk", "input_schema": {"type": "object", "properties": {}}},
]


_clients: dict[tuple[str, str], Anthropic] = {}


def client(server: Running, key: str = "none") -> Anthropic:
    if (server.url, key) not in _clients:
        made = Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=60)
        _clients[server.url, key] = made
    return _clients[server.url, key]


@pytest.fixture(scope="module", autouse=True)
def _close_clients() -> Iterator[None]:
    yield
    for made in _clients.values():
        made.close()
    _clients.clear()


def plain(message: Any) -> dict[str, Any]:
    """A message without what differs from call to call."""
    found: dict[str, Any] = json.loads(message.model_dump_json())
    del found["id"]
    for block in found["content"]:
        block.pop("id", None)
        block.pop("parsed_output", None)
    return found


def n_input(usage: Any) -> int:
    return int(usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens)


def test_a_message_is_answered_as_by_the_python_api(server: Running) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *ASK["messages"]]
    expected = server.llm.chat(turns, temperature=0, max_tokens=12)
    found = client(server).messages.create(**ASK)
    (block,) = found.content
    assert block.type == "text"
    assert block.text == expected.text
    assert (found.stop_reason, found.stop_sequence, found.role) == ("max_tokens", None, "assistant")
    assert n_input(found.usage) == expected.n_prompt
    assert found.usage.output_tokens == 12
    assert found._request_id == found.id.removeprefix("msg_")


@pytest.mark.parametrize("changes", [
    {},
    {"stop_sequences": ["zzz"], "max_tokens": 200},
    {"tools": TOOLS, "tool_choice": {"type": "any"}, "max_tokens": 200},
    {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "feed", "disable_parallel_tool_use": True},
     "max_tokens": 200},
    {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "max_tokens": 200},
])  # fmt: skip
def test_a_stream_adds_up_to_the_whole_answer(server: Running, changes: dict[str, Any]) -> None:
    ours = client(server)
    body = {**ASK, **changes}
    ours.messages.create(**body)  # fills the cache, which usage tells of
    whole = ours.messages.create(**body)
    with ours.messages.stream(**body) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_message()
    assert plain(final) == plain(whole)
    assert whole.content
    assert events[0] == "message_start"
    assert events[-1] == "message_stop"
    assert events.count("content_block_start") == events.count("content_block_stop") == len(whole.content)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "feed"}])
def test_calls_of_tools_and_their_results(server: Running, choice: Any) -> None:
    ours = client(server)
    body = {**ASK, "tools": TOOLS, "max_tokens": 200}
    found = ours.messages.create(
        **{**body, "tool_choice": {**choice, "disable_parallel_tool_use": True}, "extra_body": {}}
    )
    assert found.stop_reason == "tool_use"
    (call,) = found.content
    assert call.type == "tool_use"
    if call.name == "feed":
        jsonschema.validate(call.input, SCHEMA)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "done", "is_error": True}
    messages: Any = [
        *ASK["messages"],
        {"role": "assistant", "content": found.content},
        {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
    ]
    turns = [
        {"role": "system", "content": "Be brief."},
        *ASK["messages"],
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "Error: done"},
        {"role": "user", "content": "And now?"},
    ]
    expected = server.llm.chat(turns, temperature=0, max_tokens=5)
    asked: dict[str, Any] = {**body, "messages": messages, "max_tokens": 5, "tool_choice": {"type": "none"}}
    again = ours.messages.create(**asked)
    assert n_input(again.usage) == expected.n_prompt
    assert "".join(block.text for block in again.content if block.type == "text") == expected.text


@pytest.mark.parametrize(("is_single", "n_calls"), [(False, 2), (True, 1)])
def test_at_most_one_call_where_that_is_asked_for(server: Running, is_single: bool, n_calls: int) -> None:
    """The schema makes the model say two calls."""
    said = [{"name": "walk", "parameters": {}}] * 2
    body: dict[str, Any] = {
        **ASK,
        "max_tokens": 200,
        "tools": TOOLS,
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": is_single},
        "output_config": {"format": {"type": "json_schema", "schema": {"const": said}}},
    }
    found = client(server).messages.create(**body)
    assert [block.type for block in found.content] == ["tool_use"] * n_calls
    assert found.stop_reason == "tool_use"
    with client(server).messages.stream(**body) as stream:
        assert plain(stream.get_final_message())["content"] == plain(found)["content"]
    assert not server.service.calls


class Animal(BaseModel):
    name: Literal["Dolly", "Serge"]
    is_llama: bool


def test_answers_follow_a_schema(server: Running) -> None:
    parsed = client(server).messages.parse(**{**ASK, "max_tokens": 300}, output_format=Animal)
    assert isinstance(parsed.parsed_output, Animal)
    beta = {"output_format": {"type": "json_schema", "schema": SCHEMA}}  # as it was called before
    found = client(server).messages.create(**{**ASK, "max_tokens": 300, "extra_body": beta})
    assert found.content[0].type == "text"
    jsonschema.validate(json.loads(found.content[0].text), SCHEMA)


def test_the_beta_client_speaks_the_same(server: Running) -> None:
    found = client(server).beta.messages.create(**ASK, betas=["context-management-2025-06-27"])
    assert plain(client(server).messages.create(**ASK))["content"] == plain(found)["content"]


def test_an_answer_goes_on_where_the_request_ends(server: Running) -> None:
    tokenizer = server.llm.tokenizer
    asked = server.llm.chat_request(ASK["messages"], server.llm.default_params).prompt
    prompt = [*asked, *tokenizer.encode("The best (", bos=False)]
    expected = server.llm.generate(prompt, temperature=0, max_tokens=12)
    messages: Any = [*ASK["messages"], {"role": "assistant", "content": "The best ("}]
    found = client(server).messages.create(**{**ASK, "system": "", "messages": messages})
    assert found.content[0].type == "text"
    assert found.content[0].text == expected.text
    assert n_input(found.usage) == len(prompt)


def test_a_stop_sequence_is_named(server: Running) -> None:
    text = server.llm.chat(ASK["messages"], temperature=0, max_tokens=12).text
    body = {**ASK, "system": "", "stop_sequences": ["zzz", text[3:5]]}
    found = client(server).messages.create(**body)
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", text[3:5])
    assert found.content[0].type == "text"
    assert found.content[0].text == text[: text.index(text[3:5])]


def test_an_answer_ends_with_the_context(server: Running) -> None:
    body = {**ASK, "max_tokens": 32000, "output_config": {"format": {"type": "json_schema", "schema": {
        "type": "string", "minLength": 5000}}}}  # fmt: skip
    found = client(server).messages.create(**body)
    assert found.stop_reason == "model_context_window_exceeded"
    assert n_input(found.usage) + found.usage.output_tokens == server.llm.context


def test_the_cache_is_told_of(server: Running) -> None:
    body = {
        **ASK,
        "system": [{"type": "text", "text": "cached " * 30, "cache_control": {"type": "ephemeral"}}],
    }
    first, second = (client(server).messages.create(**body) for _ in range(2))
    assert first.usage.cache_read_input_tokens == 0
    assert second.usage.cache_read_input_tokens or 0 > 100
    assert n_input(first.usage) == n_input(second.usage) == first.usage.input_tokens
    with client(server).messages.stream(**body) as stream:
        started = next(event.message.usage for event in stream if event.type == "message_start")
    assert started.cache_read_input_tokens == second.usage.cache_read_input_tokens


CONVERSATIONS: list[dict[str, Any]] = [
    {},
    {"system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]},
    {"tools": TOOLS, "tool_choice": {"type": "auto"}},
    {"messages": [*ASK["messages"], {"role": "assistant", "content": "Re"}]},
    {"messages": [{"role": "user", "content": "a"},
                  {"role": "user", "content": [{"type": "text", "text": "b"}]},
                  {"role": "assistant", "content": [
                      {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "c"},
                      {"type": "tool_use", "id": "t1", "name": "feed", "input": {"age": 3, "kind": "a"}}]},
                  {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [
                      {"type": "text", "text": "d"}, {"type": "text", "text": "e"}]}]},
                  {"role": "system", "content": "f"}]},
]  # fmt: skip


@pytest.mark.parametrize("changes", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_tokens_are_counted_as_they_are_used(server: Running, changes: dict[str, Any]) -> None:
    body = {**ASK, **changes, "extra_body": {}}
    counted = client(server).messages.count_tokens(**{k: v for k, v in body.items() if k != "max_tokens"})
    assert counted.input_tokens == n_input(client(server).messages.create(**body).usage)


def test_pictures(seeing: Running) -> None:
    data = base64.b64encode(png()).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content: Any = [{"type": "text", "text": "What is"}, {"type": "image", "source": source}]
    messages: Any = [{"role": "user", "content": content}]
    turns = [{"role": "user", "content": [content[0], {"type": "image", "image": png()}]}]
    expected = seeing.llm.chat(turns, temperature=0, max_tokens=5)
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "extra_body": GREEDY}
    found = client(seeing).messages.create(messages=messages, **body)
    assert n_input(found.usage) == expected.n_prompt
    assert (
        client(seeing).messages.count_tokens(model="tiny", messages=messages).input_tokens
        == expected.n_prompt
    )
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": content}
    messages = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": [call]},
                {"role": "user", "content": [result]}]  # fmt: skip
    turns = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": ""},
             {"role": "tool", "content": "What is"},
             {"role": "user", "content": [{"type": "image", "image": png()}]}]  # fmt: skip
    found = client(seeing).messages.create(messages=messages, **body)
    assert n_input(found.usage) == seeing.llm.chat(turns, temperature=0, max_tokens=5).n_prompt
    for wrong, said in (
        ({**source, "data": "AAAA"}, r"messages\[0\].content\[0\]: "),
        ({"type": "url", "url": "https://example.com/a.png"}, "images from no host"),
        ({"type": "url", "url": "file:///etc/passwd"}, "must be a data: or https: URL"),
    ):
        messages = [{"role": "user", "content": [{"type": "image", "source": wrong}]}]
        with pytest.raises(anthropic.BadRequestError, match=said):
            client(seeing).messages.create(messages=messages, system="Look.", **body)


def test_models_are_listed_in_pages(server: Running) -> None:
    models = list(client(server).models.list())
    assert [model.id for model in models] == ["tiny"]
    assert models[0].max_input_tokens == server.llm.context
    assert client(server).models.retrieve("tiny") == models[0]
    with pytest.raises(anthropic.NotFoundError, match="there is no model 'big'") as caught:
        client(server).models.retrieve("big")
    assert caught.value.type == "not_found_error"
    assert httpx.get(f"{server.url}/v1/models").json()["object"] == "list"
    with pytest.raises(anthropic.BadRequestError, match="after_id must be the id of a model"):
        client(server).models.list(after_id="big")
    assert list(client(server).models.list(after_id="tiny")) == []


def test_errors_are_typed(server: Running, start: Start, tmp_path: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match="did you mean 'tiny'") as caught:
        client(server).messages.create(**{**ASK, "model": "tinny"})
    assert caught.value.type == "not_found_error"
    long: Any = [{"role": "user", "content": "a" * 600}]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: the prompt has"):
        client(server).messages.create(**{**ASK, "messages": long})
    accounts = open_accounts(tmp_path, requires_keys=True)
    shop = start(ServerConfig(port=0), accounts)
    with pytest.raises(anthropic.AuthenticationError, match="unknown, expired or revoked") as refused:
        client(shop).messages.create(**ASK)
    assert refused.value.type == "authentication_error"
    key = accounts.keys.create("test", "acme", limits=Limits(requests_per_minute=1))[1]
    assert client(shop, key).messages.create(**ASK).content
    with pytest.raises(anthropic.RateLimitError) as limited:
        client(shop, key).messages.create(**ASK)
    assert limited.value.type == "rate_limit_error"
    assert int(limited.value.response.headers["retry-after"]) >= 1
    other = accounts.keys.create("test", "acme", limits=Limits(models=("other",)))[1]
    with pytest.raises(anthropic.PermissionDeniedError, match="may use other, not tiny"):
        client(shop, other).messages.create(**ASK)
    with pytest.raises(anthropic.PermissionDeniedError, match="may use other, not tiny"):
        client(shop, other).messages.count_tokens(model="tiny", messages=ASK["messages"])
    large = httpx.post(f"{server.url}/v1/messages", content=b" " * (33 << 20))
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


def test_an_answer_that_breaks_off_is_an_error(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(server, monkeypatch)
    slow.close()
    with client(server).messages.stream(**{**ASK, "max_tokens": 100}) as stream:
        assert next(stream).type == "message_start"
        slow.error = MemoryError("no more")
        slow.open()
        with pytest.raises(anthropic.APIStatusError, match="MemoryError: no more") as caught:
            stream.until_done()
    assert caught.value.type == "api_error"
    slow.error = MemoryError("no more")
    with pytest.raises(anthropic.InternalServerError, match="MemoryError: no more"):
        client(server).messages.create(**ASK)


def ask(**changes: Any) -> dict[str, Any]:
    body = {"model": "tiny", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}], **changes}
    return {name: value for name, value in body.items() if value is not None}


def user(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*blocks]}]


USE = {"type": "tool_use", "id": "t1", "name": "feed", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "x"}
HI: Any = {"role": "user", "content": "Hi"}
BEGUN: Any = {"role": "assistant", "content": "So"}
FORM = {"format": {"type": "json_schema", "schema": SCHEMA}}
WRONG: list[tuple[dict[str, Any], str]] = [
    (ask(max_tokens=None), "max_tokens is missing"),
    (ask(max_tokens=0), "greater than or equal to 1"),
    (ask(temprature=1), "no field 'temprature'; did you mean 'temperature'"),
    (ask(temperature=1.5), "less than or equal to 1"),
    (ask(messages=[]), "at least 1 item"),
    (ask(messages=[{"role": "user", "content": ""}]), "messages[0].content must not be empty"),
    (ask(messages=[{"role": "elf", "content": "a"}]), "'elf'"),
    (ask(messages=user({"type": "document", "source": {}})), "'document'"),
    (ask(messages=user({"type": "text", "text": ""})), "messages[0].content[0].text: String should have at"),
    (ask(messages=user({"type": "image", "source": {"type": "base64", "media_type": "bmp", "data": ""}})),
     "messages[0].content[0].source.media_type: "),
    (ask(messages=user(USE)), "'tool_use'"),
    (ask(messages=user(RESULT)), "must answer one tool_use of the message before, 't1' does not"),
    (ask(messages=[HI, {"role": "assistant", "content": [USE]}, HI]), "must have its tool_result"),
    (ask(messages=[HI, {"role": "assistant", "content": [USE]}]), "there is none for 't1'"),
    (ask(messages=[HI, {"role": "assistant", "content": [USE]}, *user(RESULT, RESULT)]), "'t1' does not"),
    (ask(messages=[HI, {"role": "assistant", "content": "So "}]), "not end with white space, found 'So '"),
    (ask(messages=[HI, BEGUN], output_config=FORM), "follow a schema cannot be begun"),
    (ask(messages=[HI, BEGUN], tools=TOOLS, tool_choice={"type": "any"}), "call a tool cannot be begun"),
    (ask(tool_choice={"type": "any"}), "tool_choice needs tools"),
    (ask(tools=TOOLS, tool_choice={"type": "tool", "name": "fed"}), "did you mean 'feed'"),
    (ask(tools=TOOLS, tool_choice={"type": "some"}), "'some'"),
    (ask(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "tools[0]."),
    (ask(output_config=FORM, output_format=FORM["format"]), "mean the same, give one"),
    (ask(output_config={"format": {"type": "json_schema", "schema": {"$ref": "https://a.ex/b"}}}), "a.ex/b"),
    (ask(context_management={"edits": [{"type": "clear_tool_uses_20250919"}]}), "clear_thinking_20251015"),
    (ask(container="c"), "no field 'container'"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_with_a_request_is_said(server: Running, body: Any, said: str) -> None:
    answer = server.post("/v1/messages", body)
    assert answer.status_code == 400, answer.text
    found = answer.json()
    assert set(found) == {"type", "error", "request_id"}
    assert found["type"] == "error"
    assert found["error"]["type"] == "invalid_request_error"
    assert said in found["error"]["message"]
    assert not server.service.calls


def test_what_changes_nothing_is_named(server: Running) -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    body = ask(
        thinking={"type": "adaptive"},
        metadata={"user_id": "me"},
        messages=[HI, {"role": "assistant", "content": [thought, {"type": "text", "text": "Ho"}]}, HI],
    )
    answer = server.post("/v1/messages", body)
    assert answer.status_code == 200
    assert answer.headers["x-puna-ignored"] == "metadata, thinking, messages.content.thinking"


def test_pings_come_while_nothing_else_does(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.server.sse.PING_S", 0.01)
    slow = Slow(server, monkeypatch)
    slow.gate = threading.Semaphore(0)
    body = ask(stream=True, temperature=0)
    with httpx.stream("POST", f"{server.url}/v1/messages", json=body, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("event: "))
        assert [next(lines) for _ in range(3)] == ["event: ping"] * 3
        slow.open()
        rest = [line.removeprefix("event: ") for line in lines]
    names = [name for name in rest if name != "ping"]
    assert (names[0], names[-1]) == ("message_start", "message_stop")


def test_a_client_that_goes_away_stops_its_answer(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while all that it gets are pings."""
    monkeypatch.setattr("puna.server.sse.PING_S", 0.01)
    slow = Slow(server, monkeypatch)
    slow.gate = threading.Semaphore(0)
    labels = {"model": "tiny", "tenant": "", "endpoint": "messages", "status": "cancelled"}
    count = partial(server.service.metrics.registry.get_sample_value, "puna_requests_total", labels)
    before = count() or 0
    with httpx.stream("POST", f"{server.url}/v1/messages", json=ask(stream=True), timeout=60) as answer:
        assert next(answer.iter_lines()) == "event: ping"
    until(lambda: not server.llm._engine._commands.empty() or not server.service.calls)
    slow.open()
    until(lambda: not server.service.calls)
    assert count() == before + 1
