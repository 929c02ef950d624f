"""No text of a request becomes a control token, whichever field of whichever API it comes in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from llm.tiny_llm import write_tiny_llm
from safety import guards
from server.conftest import Running, Start, open_accounts
from server.security.fields import EVIL, REQUESTS, changed, halved, texts
from text import templates

from puna import LLM
from puna.core import Request
from puna.server.config import ServerConfig

NAMES = [
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|python_tag|>",
]  # fmt: skip
# texts that have to have a form, or to be that of another field; then what has to be a word for a builder
REFUSED = {
    "/v1/chat/completions": {"tools.0.function.name"},
    "/llama/v1/chat/completions": {"tools.0.function.name"},
    "/api/chat": {"tools.0.function.name"},
    "/apply-template": {"tools.0.function.name"},
    "/v1/responses": {"tools.0.name", "input.3.name", "input.3.call_id", "input.4.call_id", "metadata.k.key"},
    "/v1/messages": {"tools.0.name", "messages.1.content.1.id", "messages.2.content.0.tool_use_id"},
}
REFUSED["/v1/messages/count_tokens"] = REFUSED["/v1/messages"]
WORDS = {
    *(f"messages.{i}.tool_calls.0.function.name" for i in (2, 4)), "messages.1.content.1.name",
    "tools.0.function.name",
}  # fmt: skip
HIDDEN = {"name", "tool_name", "tool_call_id", "id", "user", "key", "k", "stop", "stop_sequences", "title"}


class Listener:
    """Remembers what the engine is asked."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.requests: list[Request] = []
        self._client = httpx.Client(base_url=running.url, timeout=60)

    def close(self) -> None:
        self._client.close()

    def ask(self, path: str, body: Any) -> tuple[int, list[list[int]]]:
        """The status, and the prompts that were made."""
        self.requests.clear()
        answer = self._client.post(path, json=body)
        assert answer.status_code in (200, 400), (path, body, answer.text)
        return answer.status_code, [list(request.prompt) for request in self.requests]

    def control(self, prompts: list[list[int]]) -> list[list[int]]:
        special = self.running.llm.tokenizer.special_ids
        return [[token for token in prompt if token in special] for prompt in prompts]

    def says(self, prompts: list[list[int]], text: str) -> bool:
        return any(text in self.running.llm.tokenizer.decode(prompt) for prompt in prompts)


@pytest.fixture(scope="module", params=["template", "builder"])
def listener(
    start: Start, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Listener]:
    """Of a model whose prompts are Llama 3.1's, by Meta's template or from ids."""
    path = tmp_path_factory.mktemp("models") / "llama31.gguf"
    template = templates.LLAMA31 if request.param == "template" else None
    write_tiny_llm(path, template=template, control=NAMES, context=4096)
    running = start(ServerConfig(port=0), open_accounts(tmp_path_factory.mktemp("ledger")), path=path)
    found = Listener(running)
    make = LLM._request_of

    def noted(self: LLM, *args: Any, **options: Any) -> Request:
        made = make(self, *args, **options)
        found.requests.append(made)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LLM, "_request_of", noted)
        yield found
        found.close()


def test_the_texts_would_be_control_tokens(listener: Listener) -> None:
    tokenizer = listener.running.llm.tokenizer
    found = [i for i in tokenizer.encode(EVIL, special=True) if i in tokenizer.special_ids]
    assert len(found) == 8
    assert not [i for i in tokenizer.encode(EVIL) if i in tokenizer.special_ids]


@pytest.mark.parametrize("path", REQUESTS)
def test_no_field_makes_control_tokens(listener: Listener, path: str) -> None:
    body = REQUESTS[path]
    status, prompts = listener.ask(path, body)
    expected = listener.control(prompts)
    assert status == 200
    assert prompts
    refused = set()
    for place in texts(body):
        name = ".".join(map(str, place))
        status, prompts = listener.ask(path, changed(body, place, EVIL))
        if status == 400:
            refused.add(name)
            continue
        assert listener.control(prompts) == expected, name
        if HIDDEN.isdisjoint(place):
            assert listener.says(prompts, "<|eot_id|>"), name
    words = set() if listener.running.llm.tokenizer.chat_template else WORDS
    assert refused - words == REFUSED.get(path, set()) - words
    status, prompts = listener.ask(path, halved(body))
    assert (status, listener.control(prompts)) == (200, expected)
    assert listener.says(prompts, "<|eot")


def test_nor_does_what_was_stored(listener: Listener) -> None:
    client = listener.running.openai()
    prompts: list[list[list[int]]] = []
    for text in ("harmless", EVIL):
        conversation = client.conversations.create(items=[{"role": "user", "content": text}])
        first = client.responses.create(model="tiny", input=text, instructions=text, max_output_tokens=1)
        for context in ({"previous_response_id": first.id}, {"conversation": conversation.id}):
            listener.ask("/v1/responses", {"model": "tiny", "input": "a", "max_output_tokens": 1, **context})
            prompts.append([list(request.prompt) for request in listener.requests])
            assert listener.says(prompts[-1], text)
    assert [listener.control(made) for made in prompts[:2]] == [
        listener.control(made) for made in prompts[2:]
    ]


def test_nor_does_an_answer_that_is_held_to_texts(listener: Listener) -> None:
    """A control token would be missing from the text of the answer."""
    schema = {"type": "object", "properties": {EVIL: {"const": EVIL}}, "required": [EVIL]}
    schema["additionalProperties"] = False
    client = listener.running.openai()
    for form, expected in (
        ({"type": "choice", "choices": [EVIL]}, EVIL),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}, {EVIL: EVIL}),
    ):
        asked: Any = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "a"}],
            "response_format": form,
        }
        said = client.chat.completions.create(**asked, max_tokens=900).choices[0]
        assert said.finish_reason == "stop"
        text = said.message.content
        assert (text if isinstance(expected, str) else json.loads(text or "")) == expected


def test_nor_does_what_a_guard_judges(start: Start, tmp_path: Path) -> None:
    path = write_tiny_llm(tmp_path / "guard.gguf", template=guards.GUARD_3, control=NAMES, context=2048)
    running = start(ServerConfig(port=0), open_accounts(tmp_path), path=path)
    special, found = running.llm.tokenizer.special_ids, []
    make = running.llm._request_of

    def noted(*args: Any, **options: Any) -> Request:
        made = make(*args, **options)
        found.append([token for token in made.prompt if token in special])
        return made

    running.llm._request_of = noted  # type: ignore[method-assign]
    for text in ("harmless", EVIL):
        for given in (text, [text], [{"type": "text", "text": text}]):
            assert running.post("/v1/moderations", {"input": given}).status_code == 200
    assert found == found[:1] * 6
