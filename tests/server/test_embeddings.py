"""Embeddings over HTTP, by OpenAI's and Ollama's clients, with the Python API as the oracle."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import ollama
import openai
import pytest
from server.conftest import Running, Start, open_accounts

from puna.server.config import ServerConfig
from puna.server.tenants.queries import Filters, totals

TEXTS = ["the other day", "An alpaca.", "the"]


def test_openai_gets_what_the_python_api_gives(server: Running) -> None:
    expected = server.llm.embed(TEXTS)
    client = server.openai()
    for encoding in ("float", "base64", openai.omit):
        found = client.embeddings.create(model="tiny", input=TEXTS, encoding_format=encoding)  # type: ignore[arg-type]
        assert [item.index for item in found.data] == [0, 1, 2]
        vectors = [
            np.frombuffer(base64.b64decode(item.embedding), "<f4")  # the client leaves what was asked for
            if isinstance(item.embedding, str)
            else np.array(item.embedding, np.float32)
            for item in found.data
        ]
        np.testing.assert_array_equal(np.stack(vectors), expected)
        n_tokens = sum(len(server.llm.tokenizer.encode(text)) for text in TEXTS)
        assert (found.usage.prompt_tokens, found.usage.total_tokens) == (n_tokens, n_tokens)


def test_one_text_and_token_ids(server: Running) -> None:
    client = server.openai()
    ids = server.llm.tokenizer.encode(TEXTS[0])
    (expected,) = server.llm.embed([TEXTS[0]])
    inputs: list[tuple[Any, int]] = [(TEXTS[0], 1), (ids, 1), ([ids, ids], 2)]
    for given, n in inputs:
        found = client.embeddings.create(model="tiny", input=given, dimensions=64)
        assert len(found.data) == n
        for item in found.data:
            np.testing.assert_array_equal(np.array(item.embedding, np.float32), expected)


WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    ({"dimensions": 16}, 400, "dimensions", "must be the 64"),
    ({"input": ""}, 400, "input", "at least one token"),
    ({"input": []}, 400, "input", "at least one token"),
    ({"input": ["the", ""]}, 400, "input", "at least one token"),
    ({"input": [10**6]}, 400, "input", "1000000"),
    ({"input": "x " * 600}, 400, "input", "the context of this model holds 512"),
    ({"input": ["x"] * 2049}, 400, "input", "at most 2048"),
    ({"encoding_format": "hex"}, 400, "encoding_format", "hex"),
    ({"model": "big"}, 404, "model", "there is no model 'big'"),
]


@pytest.mark.parametrize(("changes", "status", "param", "said"), WRONG)
def test_what_is_wrong_is_said(
    server: Running, changes: dict[str, Any], status: int, param: str, said: str
) -> None:
    answer = server.post("/v1/embeddings", {"model": "tiny", "input": "the", **changes})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["param"] == param
    assert not server.service.calls


def test_ollama_gets_them_too(server: Running) -> None:
    expected = server.llm.embed(TEXTS)
    with ollama.Client(server.url) as client:
        found = client.embed("tiny", TEXTS)
        np.testing.assert_array_equal(np.array(found.embeddings, np.float32), expected)
        assert found.prompt_eval_count == sum(len(server.llm.tokenizer.encode(text)) for text in TEXTS)
        one = client.embed("tiny", TEXTS[0])
        np.testing.assert_array_equal(np.array(one.embeddings, np.float32), expected[:1])
        older = client.embeddings("tiny", TEXTS[0])
        raw = server.llm.embed(TEXTS[0], normalize=False)
        np.testing.assert_array_equal(np.array(older.embedding, np.float32), raw)


def test_a_text_is_cut_only_where_it_is_asked_for(server: Running) -> None:
    text = "x " * 600
    with ollama.Client(server.url) as client:
        with pytest.raises(ollama.ResponseError, match="the context of this model holds 512"):
            client.embed("tiny", text)
        found = client.embed("tiny", text, truncate=True)
        assert found.prompt_eval_count == 512
        kept = server.llm.tokenizer.encode(text)[:512]
        np.testing.assert_array_equal(np.array(found.embeddings[0], np.float32), server.llm.embed(kept))


def test_they_are_in_the_ledger(start: Start, tmp_path: Any) -> None:
    running = start(ServerConfig(port=0), open_accounts(tmp_path))
    n_tokens = sum(len(running.llm.tokenizer.encode(text)) for text in TEXTS)
    running.openai().embeddings.create(model="tiny", input=TEXTS)
    (row,) = totals(running.service.accounts.database, ["model"], Filters())
    assert (row.requests, row.prompt_tokens, row.output_tokens) == (1, n_tokens, 0)
