"""A model file whose chat template does not end: its requests are refused, everything else goes on."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
from llm.tiny_llm import write_tiny_llm
from server.conftest import Running, Start, open_accounts

from puna.server.config import ServerConfig

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATE = (
    "{% if 'loop' in messages[0].content %}" + LOOPS + "{% endif %}"
    "{% if 'fill' in messages[0].content %}{{ 'x' * 10 ** 10 }}{% endif %}"
    "{{ '<|im_start|>' + messages[0].content }}"
)


@pytest.fixture(scope="module")
def server(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    folder = tmp_path_factory.mktemp("hostile")
    path = write_tiny_llm(folder / "hostile.gguf", template=TEMPLATE)
    return start(ServerConfig(port=0), open_accounts(folder), path=path)


def chat(text: str) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 3}


def test_others_are_answered_while_a_template_loops(server: Running) -> None:
    assert server.post("/v1/chat/completions", chat("Hi")).status_code == 200
    found: list[httpx.Response] = []
    ask = threading.Thread(target=lambda: found.append(server.post("/v1/chat/completions", chat("loop"))))
    ask.start()
    n_answered = 0
    while ask.is_alive():
        body = {"model": "tiny", "prompt": "the", "max_tokens": 2}
        assert server.post("/v1/completions", body).status_code == 200
        n_answered += not found
    ask.join()
    assert n_answered > 0
    [answer] = found
    assert answer.status_code == 400
    assert "chat template must be rendered in" in answer.json()["error"]["message"]
    # It is not tried again: whoever asks is refused at once, and the file is to blame, not the message.
    again = server.post("/v1/chat/completions", chat("Hi"))
    assert again.status_code == 400
    assert "a file with a good template" in again.json()["error"]["message"]
