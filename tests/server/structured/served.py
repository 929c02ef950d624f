"""A model behind the real server, for measurements: what its grammars cost can be read off."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
from server.conftest import one_model, open_accounts

from puna import LLM
from puna.core import BadValue
from puna.engine.masks import GrammarStats
from puna.model.config import ModelConfig
from puna.server.app import create_app
from puna.server.config import ServerConfig
from puna.server.run import serve
from puna.text.files import read_folder
from puna.text.tokenizer import Tokenizer
from puna.weights.load import write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint
from puna.weights.targets import encoded_value


class Served:
    def __init__(self, llm: LLM, client: httpx.Client) -> None:
        self._llm = llm
        self._client = client
        self.vocab_size = llm.config.vocab_size

    @property
    def stats(self) -> GrammarStats:
        return self._llm._engine._engine.grammar_stats

    def answer(self, schema: Any, seed: int, limit: int) -> bytes | None:
        """A whole answer under a schema, at temperature 1. Raises BadValue for what the server refuses."""
        body = {
            "model": "m", "messages": [{"role": "user", "content": "Write an example."}], "seed": seed,
            "temperature": 1, "max_tokens": limit,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        }  # fmt: skip
        found = self._client.post("/v1/chat/completions", json=body)
        if found.status_code != 200:
            message = found.json()["error"]["message"]
            raise BadValue("no token is left" if "allow some token at every place" in message else message)
        [choice] = found.json()["choices"]
        return choice["message"]["content"].encode() if choice["finish_reason"] == "stop" else None


@contextmanager
def served(model: str | None, vocabulary: Path | None) -> Iterator[Served]:
    """`model` by name, or a random one with the tokenizer of a folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = model if vocabulary is None else random_model(vocabulary, Path(folder) / "random.gguf")
        assert path is not None
        with (
            LLM(path) as llm,
            running(llm, "m", Path(folder)) as url,
            httpx.Client(base_url=url, timeout=300) as client,
        ):
            yield Served(llm, client)


@contextmanager
def running(llm: LLM, name: str, folder: Path) -> Iterator[str]:
    """A server of one model, with its database and files in a folder; its URL."""
    accounts = open_accounts(folder)
    config = ServerConfig(port=0, files_folder=str(folder / "files"))
    app = create_app(config, one_model(name, llm), accounts)
    urls: SimpleQueue[str] = SimpleQueue()
    thread = threading.Thread(target=serve, args=(app, config, urls.put), daemon=True)
    thread.start()
    yield urls.get(timeout=30)
    app.state.service.is_draining = True
    thread.join(30)
    accounts.close()


def random_model(folder: Path, path: Path) -> Path:
    """A model of two layers, with the tokenizer in a folder."""
    metadata = read_folder(folder)
    n_vocab = Tokenizer.from_gguf(metadata).vocab_size
    config = ModelConfig(
        dim=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=96, vocab_size=n_vocab,
        norm_eps=1e-5, rope_theta=1e4, context_length=4096, tied=True,
    )  # fmt: skip
    values = {key: encoded_value(value) for key, value in metadata.items()}
    write_checkpoint(synthetic_checkpoint(config, "q8_0", seed=3), path, values)
    return path
