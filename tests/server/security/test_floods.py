"""Requests that cost far more than they weigh: strangers are turned away before their body is read, and what
is wrong is found without looking at all of it."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import httpx
import pytest
from pydantic import ValidationError
from server.conftest import Running, Start, open_accounts

from puna.server import strict
from puna.server.anthropic.fields import MessagesRequest
from puna.server.config import ServerConfig
from puna.server.openai.chat import ChatRequest
from puna.server.openai.completions import CompletionRequest
from puna.text.tokenizer import Tokenizer

USER = [{"role": "user", "content": "a"}]
MANY = 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [0] * MANY},
        {"messages": [{"role": "user", "content": [0] * MANY}]},
        {"messages": USER, "stop": [0] * MANY},
        {"messages": USER, "tools": [{"type": 0}] * MANY},
    ],
    ids=["messages", "content", "stop", "tools"],
)
def test_a_list_is_wrong_with_its_first_wrong_item(fields: dict[str, Any]) -> None:
    """All of them as errors took 9 GB for a body of 14 MB."""
    for request in (ChatRequest, MessagesRequest):
        with pytest.raises(ValidationError) as caught:
            request.model_validate({"model": "tiny", "max_tokens": 1, **fields})
        assert caught.value.error_count() < 20


def test_prompts_of_wrong_items_too() -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"model": "tiny", "prompt": [None] * MANY})
    assert caught.value.error_count() < 20


def test_an_object_of_more_fields_than_any_request_has() -> None:
    text = "{" + ",".join(f'"k{i}":0' for i in range(10_001)) + "}"
    with pytest.raises(strict.NotStrict, match="10,000 fields, one has 10,001"):
        strict.loads(text.encode())


def test_a_field_twice_at_the_end_of_a_large_object() -> None:
    """Counting each name took minutes."""
    text = "{" + ",".join(f'"k{i}":0' for i in range(9_999)) + ',"k9998":0}'
    with pytest.raises(strict.NotStrict, match="'k9998' twice"):
        strict.loads(text.encode())


@pytest.fixture(scope="module")
def closed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A server that asks for keys."""
    accounts = open_accounts(tmp_path_factory.mktemp("accounts"), requires_keys=True)
    return start(ServerConfig(require_keys=True), accounts)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/llama/v1/chat/completions", "/tokenize"]
)
def test_a_body_of_a_stranger_is_not_read(closed: Running, path: str) -> None:
    for body in (b"{", b'{"foo":1}', json.dumps({"model": "tiny", "messages": [0] * MANY}).encode()):
        headers = {"content-type": "application/json"}
        assert httpx.post(closed.url + path, content=body, headers=headers).status_code == 401


def test_a_prompt_that_cannot_fit_is_not_encoded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(Tokenizer, "split", fail)
    text = "a " * 1_000_000
    parts = [{"type": "text", "text": text}]
    for path, fields in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": parts}]},
        ),
        ("/v1/completions", {"prompt": text}),
        ("/v1/embeddings", {"input": text}),
    ):
        answer = server.post(path, {"model": "tiny", **fields})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "2,000,000 characters" in error["message"]
        assert str(server.llm.context) in error["message"]
