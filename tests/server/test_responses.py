"""/v1/responses and /v1/conversations, through the openai client."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from dataclasses import replace
from typing import Any, Literal

import httpx
import openai
import pytest
from llm.tiny_vision import LLAMA4, TEMPLATE, TOKENS, let_see, png
from pydantic import BaseModel
from server.conftest import Running, Start, open_accounts
from server.structured.scripted import Script

from puna.core import Request
from puna.server.config import ServerConfig
from puna.server.storage import responses
from puna.server.storage.responses import Stored
from puna.server.tenants.queries import page
from puna.server.tiers import FLEX

ASK: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_output_tokens": 8}
ENDED: Any = {"format": {"type": "json_schema", "name": "kind", "schema": {"enum": ["llama", "alpaca"]}}}
FEED: Any = {
    "type": "function",
    "name": "feed",
    "description": "Feeds.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"kind": {"enum": ["llama", "alpaca"]}},
        "required": ["kind"],
        "additionalProperties": False,
    },
}


class Animal(BaseModel):
    kind: Literal["llama", "alpaca"]
    is_fed: bool


@pytest.fixture(scope="module")
def tenants(start: Start, tmp_path_factory: pytest.TempPathFactory) -> list[openai.OpenAI]:
    """Clients of two tenants of one server."""
    accounts = open_accounts(tmp_path_factory.mktemp("ledger"), requires_keys=True)
    running = start(ServerConfig(port=0), accounts)
    return [running.openai(accounts.keys.create("test", name)[1]) for name in ("acme", "umbrella")]


def test_a_response_is_what_chat_says(server: Running) -> None:
    client = server.openai()
    turns: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]
    chat = client.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=8)
    found = client.responses.create(instructions="Be short.", input="Hello", **ASK)
    assert found.output_text == chat.choices[0].message.content
    assert (found.status, found.incomplete_details and found.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert found.usage is not None
    assert chat.usage is not None
    assert found.usage.input_tokens == chat.usage.prompt_tokens
    assert found.usage.output_tokens == 8
    assert client.responses.retrieve(found.id) == found
    count = client.responses.input_tokens.count(model="tiny", instructions="Be short.", input="Hello")
    assert count.input_tokens == chat.usage.prompt_tokens


def test_a_response_is_served_in_the_tier_that_it_asks_for(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    submit = server.llm.submit

    def noted(request: Request) -> Any:
        asked.append(request.priority)
        return submit(request)

    monkeypatch.setattr(server.llm, "submit", noted)
    client = server.openai()
    told = [
        client.responses.create(model="tiny", input="a", max_output_tokens=1, service_tier=tier).service_tier
        for tier in ("auto", "flex")
    ]
    assert (told, asked) == (["default", "flex"], [0, FLEX])
    with pytest.raises(openai.PermissionDeniedError, match="service_tier priority needs a key"):
        client.responses.create(model="tiny", input="a", service_tier="priority")


def test_without_parallel_calls_there_is_one(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    call = '{"name": "f", "parameters": {}}'
    tool: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    script = Script(server, monkeypatch)
    for parallel, n in ((True, 2), (False, 1)):
        script.say(f"{call}; {call}")
        told = server.openai().responses.create(
            model="tiny", input="a", tools=[tool], parallel_tool_calls=parallel
        )
        assert [item.type for item in told.output] == ["function_call"] * n


def test_events_come_in_order_and_add_up(server: Running) -> None:
    client = server.openai()
    options: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    with client.responses.stream(input="Hello", model="tiny", text=ENDED, temperature=0, **options) as stream:
        events = [*stream]
        final = stream.get_final_response()
    types = [event.type.removeprefix("response.") for event in events]
    n_deltas = types.count("output_text.delta")
    assert types == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * n_deltas,
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == final.output_text
    assert final.output_text in ('"llama"', '"alpaca"')
    whole = client.responses.create(input="Hello", model="tiny", text=ENDED, temperature=0, **options)
    assert whole.output_text == final.output_text
    told = whole.output[0].content[0].logprobs  # type: ignore[union-attr, index]
    assert [entry.token for entry in told] == [entry.token for e in deltas for entry in e.logprobs]  # type: ignore
    assert all(len(entry.top_logprobs) == 2 for entry in told)  # type: ignore[union-attr]
    assert client.responses.retrieve(final.id).output_text == final.output_text


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_parsed_into_classes(server: Running, seed: int) -> None:
    found = server.openai().responses.parse(
        model="tiny", input="Which?", text_format=Animal, extra_body={"seed": seed, "temperature": 1}
    )
    assert isinstance(found.output_parsed, Animal)
    assert found.status == "completed"


def test_tools_go_there_and_back(server: Running) -> None:
    client = server.openai()
    options: Any = {"model": "tiny", "tools": [FEED], "temperature": 0, "parallel_tool_calls": False}
    with client.responses.stream(input="Feed it.", tool_choice="required", **options) as stream:
        events = [*stream]
        first = stream.get_final_response()
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["kind"] in ("llama", "alpaca")
    types = [event.type.removeprefix("response.") for event in events]
    assert types[2:-1] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
    ]  # fmt: skip
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Thanks."}
    by_id = client.responses.create(
        input=[result], previous_response_id=first.id, max_output_tokens=8, **options
    )
    given: Any = [
        {"role": "user", "content": "Feed it."},
        *first.output,
        result,
    ]
    by_items = client.responses.create(input=given, max_output_tokens=8, **options)
    assert by_id.usage is not None
    assert by_items.usage is not None
    assert by_id.output_text == by_items.output_text
    assert by_id.usage.input_tokens == by_items.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="no function_call with call_id 'call_x'"):
        client.responses.create(input=[{**result, "call_id": "call_x"}], **options)
    only: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "feed"}]}
    allowed = client.responses.create(input="Feed it.", tool_choice=only, **options)
    assert allowed.output[0].type == "function_call"


def test_a_response_continues_others(server: Running) -> None:
    client = server.openai()
    first = client.responses.create(input="One", **ASK)
    second = client.responses.create(input="Two", previous_response_id=first.id, **ASK)
    third = client.responses.create(input="Three", previous_response_id=second.id, **ASK)
    turns: Any = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "Three"},
    ]
    chat = client.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=8)
    assert third.output_text == chat.choices[0].message.content
    assert [item.content[0].text for item in client.responses.input_items.list(third.id)] == ["Three"]  # type: ignore
    for kind in ({"type": "item_reference"}, {"type": None}, {}):
        referred: Any = [turns[0], {**kind, "id": first.output[0].id}, turns[2]]
        assert client.responses.create(input=referred, **ASK).output_text == second.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(
        openai.BadRequestError, match=f"{third.id} continues {first.id}, which has been deleted"
    ):
        client.responses.create(input="Four", previous_response_id=third.id, **ASK)


def test_what_is_not_stored_cannot_be_had(server: Running) -> None:
    client = server.openai()
    found = client.responses.create(input="One", store=False, **ASK)
    for ask in (
        lambda: client.responses.retrieve(found.id),
        lambda: client.responses.delete(found.id),
        lambda: client.responses.input_items.list(found.id),
        lambda: client.responses.create(input="Two", previous_response_id=found.id, **ASK),
    ):
        with pytest.raises(openai.NotFoundError, match="there is no response"):
            ask()


def test_conversations_remember(server: Running) -> None:
    client = server.openai()
    items: Any = [{"type": "message", "role": "user", "content": f"Item {i}"} for i in range(3)]
    talk = client.conversations.create(items=items, metadata={"topic": "llamas"})
    first = client.responses.create(input="One", conversation=talk.id, **ASK)
    second = client.responses.create(input="Two", conversation=talk.id, **ASK)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + 8
    kept = [*client.conversations.items.list(talk.id, order="asc", limit=2)]  # pages of two
    texts = [item.content[0].text for item in kept]  # type: ignore[union-attr]
    assert texts == ["Item 0", "Item 1", "Item 2", "One", first.output_text, "Two", second.output_text]
    one = client.conversations.items.retrieve(kept[1].id or "", conversation_id=talk.id)
    assert one == kept[1]
    client.conversations.items.delete(kept[1].id or "", conversation_id=talk.id)
    added = client.conversations.items.create(talk.id, items=items[:1])
    left = [*client.conversations.items.list(talk.id)]
    assert [item.id for item in left] == [added.data[0].id, *(kept[i].id for i in (6, 5, 4, 3, 2, 0))]
    client.conversations.update(talk.id, metadata={"topic": "alpacas"})
    assert client.conversations.retrieve(talk.id).metadata == {"topic": "alpacas"}
    assert client.conversations.delete(talk.id).deleted
    with pytest.raises(openai.NotFoundError, match="no conversation"):
        client.responses.create(input="Three", conversation=talk.id, **ASK)


def test_a_background_response_is_asked_for_later(server: Running) -> None:
    client = server.openai()
    begun = client.responses.create(input="Hello", model="tiny", text=ENDED, temperature=0, background=True)
    assert begun.status == "in_progress"
    while (found := client.responses.retrieve(begun.id)).status == "in_progress":
        time.sleep(0.01)
    assert found.status == "completed"
    whole = client.responses.create(input="Hello", model="tiny", text=ENDED, temperature=0)
    assert found.output_text == whole.output_text
    with pytest.raises(openai.BadRequestError, match="not made in the background"):
        client.responses.cancel(whole.id)


def test_a_background_response_is_cancelled(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = type(server.llm._engine._engine._executor)
    step = executor.step

    def unhurried(self: Any, batch: Any) -> Any:
        time.sleep(0.05)  # or the answer is whole before anybody can cancel it
        return step(self, batch)

    monkeypatch.setattr(executor, "step", unhurried)
    client = server.openai()
    options: Any = {"extra_body": {"ignore_eos": True}, "background": True}
    begun = client.responses.create(input="Hello", model="tiny", **options)
    found = client.responses.cancel(begun.id)
    assert found.status == "cancelled"
    assert client.responses.retrieve(begun.id).status == "cancelled"
    assert not server.service.calls
    rows = {row.request_id: row for row in page(server.service.accounts.database)}
    assert rows[begun.id.removeprefix("resp_")].status == "cancelled"


def test_a_response_that_ends_while_it_is_cancelled(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    find = responses.find
    looked: list[Stored] = []

    def late(*asked: Any) -> Stored | None:
        """What was there before the response ended, told after its end."""
        found = find(*asked)
        if found is None or looked:
            return found
        looked.append(replace(found, response={**found.response, "status": "in_progress"}))
        while server.service.tasks:
            time.sleep(0.01)
        return looked[0]

    client = server.openai()
    begun = client.responses.create(input="Hello", background=True, **ASK)
    monkeypatch.setattr(responses, "find", late)
    assert client.responses.cancel(begun.id).status in ("completed", "incomplete", "cancelled")
    assert looked


def test_nobody_sees_what_is_anothers(tenants: list[openai.OpenAI]) -> None:
    mine, other = tenants
    found = mine.responses.create(input="One", **ASK)
    talk = mine.conversations.create(items=[{"type": "message", "role": "user", "content": "Hi"}])
    item = mine.conversations.items.list(talk.id).data[0].id or ""
    reference: Any = [{"type": "item_reference", "id": found.output[0].id}]
    for ask in (
        lambda: other.responses.retrieve(found.id),
        lambda: other.responses.delete(found.id),
        lambda: other.responses.cancel(found.id),
        lambda: other.responses.input_items.list(found.id),
        lambda: other.responses.create(input="Two", previous_response_id=found.id, **ASK),
        lambda: other.responses.create(input="Two", conversation=talk.id, **ASK),
        lambda: other.conversations.retrieve(talk.id),
        lambda: other.conversations.update(talk.id, metadata={}),
        lambda: other.conversations.delete(talk.id),
        lambda: other.conversations.items.list(talk.id),
        lambda: other.conversations.items.create(talk.id, items=[]),
        lambda: other.conversations.items.retrieve(item, conversation_id=talk.id),
        lambda: other.conversations.items.delete(item, conversation_id=talk.id),
    ):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as caught:
            ask()
        assert caught.value.status_code == 404 or "items" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="there is no item"):
        other.responses.create(input=reference, **ASK)
    assert mine.responses.retrieve(found.id) == found
    assert len(mine.conversations.items.list(talk.id).data) == 1


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "input is missing"),
    ({"input": []}, "input", "input must have at least one item"),
    ({"input": [{"type": "web_search_call"}]}, "input[0]", "an item must be a message"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]", "input_file"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "", "one of image_url and file_id"),
    ({"input": [{"role": "user", "content": "x", "nmae": "y"}]}, "input[0].nmae", "there is no field 'nmae'"),
    ({"truncation": "auto"}, "truncation", "never cuts a conversation"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    ({"tool_choice": "required"}, "tool_choice", "tool_choice needs tools"),
    ({"tools": [FEED], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "no 'x'"),
    ({"top_logprobs": 2}, "top_logprobs", "message.output_text.logprobs"),
    ({"include": ["file_search_call.results"]}, "include[0]", "file_search_call"),
    ({"background": True, "stream": True}, "background", "stream: true"),
    ({"background": True, "store": False}, "background", "store: false"),
    ({"previous_response_id": "a", "conversation": "b"}, "conversation", "found both"),
    ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ({"max_output_tokens": 4000}, "max_output_tokens", "together"),
    ({"max_tokens": 5}, "max_tokens", "there is no field 'max_tokens'"),
    ({"input": "\ud800"}, "input", "half a surrogate pair"),
    ({"input": [{"role": "user", "content": "\ud800"}]}, "input[0]", "half a surrogate pair"),
    ({"instructions": "\ud800"}, "instructions", "half a surrogate pair"),
    ({"tools": [{**FEED, "parameters": {"a": "\ud800"}}]}, "tools", "half a surrogate pair"),
    ({"previous_response_id": "\0"}, "previous_response_id", "there is no response"),
    ({"n": 2}, "n", "there is no field 'n'"),
]


@pytest.mark.parametrize(("changes", "param", "said"), WRONG)
def test_wrong_requests_are_told_so(server: Running, changes: dict[str, Any], param: str, said: str) -> None:
    body = {"model": "tiny", "input": "Hello", **changes}
    given = json.dumps({name: value for name, value in body.items() if value is not None})
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/responses", content=given, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404)
    assert said in error["message"]
    assert param == "" or error["param"] == param
    assert not server.service.calls


def test_fields_without_effect_are_named(server: Running) -> None:
    useless = {"reasoning": {"effort": "low"}, "user": "me", "text": {"verbosity": "low"}}
    answer = server.post("/v1/responses", {**ASK, "input": "x", **useless})
    assert answer.headers["x-puna-ignored"] == "reasoning, text.verbosity, user"


def test_pictures_by_url_and_by_file_are_the_same(
    start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from llm.tiny_llm import write_tiny_llm

    folder = tmp_path_factory.mktemp("vision")
    path = write_tiny_llm(folder / "tiny.gguf", template=TEMPLATE, control=TOKENS["llama4"])
    accounts = open_accounts(folder, requires_keys=True)
    running = start(ServerConfig(port=0), accounts, path=path)
    let_see(running.llm, LLAMA4)
    mine, other = (running.openai(accounts.keys.create("test", name)[1]) for name in ("acme", "umbrella"))
    data = png()
    file = mine.files.create(file=("llama.png", data), purpose="vision")
    url = "data:image/png;base64," + b64encode(data).decode()

    def count(client: openai.OpenAI, **source: Any) -> int:
        content: Any = [
            {"type": "input_image", "detail": "auto", **source},
            {"type": "input_text", "text": "?"},
        ]
        given: Any = [{"role": "user", "content": content}]
        return client.responses.input_tokens.count(model="tiny", input=given).input_tokens

    def chat(client: openai.OpenAI, **source: Any) -> Any:
        content: Any = [{"type": "image_url", "image_url": source}, {"type": "text", "text": "?"}]
        turns: Any = [{"role": "user", "content": content}]
        return client.chat.completions.create(model="tiny", messages=turns, max_tokens=2).usage

    n_tokens = count(mine, image_url=url)
    assert n_tokens > 10
    assert count(mine, file_id=file.id) == n_tokens
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        count(other, file_id=file.id)
    for wrong in ("../../../etc/passwd", "file:///etc/passwd", "/etc/passwd"):
        with pytest.raises(openai.NotFoundError, match="there is no file"):
            count(mine, file_id=wrong)
        with pytest.raises(openai.BadRequestError, match="must be a data: or https: URL"):
            count(mine, image_url=wrong)
    with pytest.raises(openai.BadRequestError, match="fetches images from no host"):
        count(mine, image_url="https://127.0.0.1/x.png")
    batch = mine.files.create(file=("b.jsonl", data), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose vision"):
        count(mine, file_id=batch.id)
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        chat(other, file_id=file.id)
    with pytest.raises(openai.BadRequestError, match="one of url and file_id"):
        chat(mine)
