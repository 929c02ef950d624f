"""Texts to be filled in, for a model whose vocabulary has Code Llama's tokens."""

from __future__ import annotations

from typing import Any

import httpx
import ollama
import pytest
from llm.tiny_llm import write_tiny_llm
from server.conftest import Running, Start

from puna.server.config import ServerConfig
from puna.text.formats.inst import infill

NAMES = [f"\u2581<{name}>" for name in ("PRE", "MID", "SUF", "EOT")]
PREFIX, SUFFIX = "def f(x):\n    return ", "\n\nprint(f(1))"


@pytest.fixture(scope="module")
def coder(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    path = write_tiny_llm(tmp_path_factory.mktemp("coder") / "coder.gguf", control=NAMES)
    return start(ServerConfig(port=0), path=path)


def expected(coder: Running, prefix: str, suffix: str) -> str:
    return coder.llm.generate(infill(coder.llm.tokenizer, prefix, suffix), temperature=0, max_tokens=9).text


def test_completions_fill_in(coder: Running) -> None:
    client = coder.openai()
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 9, "suffix": SUFFIX}
    found = client.completions.create(prompt=[PREFIX, "x = ", ""], **options)
    answers = [expected(coder, prefix, SUFFIX) for prefix in (PREFIX, "x = ", "")]
    assert [choice.text for choice in found.choices] == answers
    pieces = client.completions.create(prompt=PREFIX, stream=True, **options)
    assert "".join(piece.choices[0].text for piece in pieces) == answers[0]


def test_ollama_fills_in(coder: Running) -> None:
    with ollama.Client(coder.url) as client:
        found = client.generate("tiny", PREFIX, suffix=SUFFIX, options={"temperature": 0, "num_predict": 9})
        assert found.response == expected(coder, PREFIX, SUFFIX)
        assert found.context is None
        assert client.show("tiny").capabilities == ["completion", "tools", "insert"]


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"prompt": [1, 2]}, "suffix", "needs a prompt of text"),
        ({"echo": True}, "echo", "cannot be had together"),
        ({"suffix": 5}, "suffix", "found 5"),
    ],
)
def test_what_is_wrong_is_said(coder: Running, changes: dict[str, Any], param: str, said: str) -> None:
    body = {"model": "tiny", "prompt": PREFIX, "suffix": SUFFIX, **changes}
    answer = coder.post("/v1/completions", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert said in answer.json()["error"]["message"]


def test_other_models_say_that_they_cannot(server: Running) -> None:
    answers: list[httpx.Response] = [
        server.post("/v1/completions", {"model": "tiny", "prompt": PREFIX, "suffix": SUFFIX}),
        server.post("/api/generate", {"model": "tiny", "prompt": PREFIX, "suffix": SUFFIX}),
    ]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert all("must have the token <PRE>" in answer.text for answer in answers)
    assert answers[0].json()["error"]["param"] == "suffix"
