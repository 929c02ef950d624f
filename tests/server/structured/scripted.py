"""A server whose model says what it is told to, token by token, through the whole engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from server.conftest import Running

from puna.core import Batch


class Script:
    """Takes the place of an executor's step. One request runs at a time."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokenizer = running.llm.tokenizer
        self._n_vocab = running.llm.config.vocab_size
        self._ids: list[int] = []
        self._first: int | None = None  # position whose row is that of the first token of the answer
        executor = running.llm._engine._engine._executor
        monkeypatch.setattr(type(executor), "step", lambda _, batch: self._step(batch))

    def say(self, answer: str | Sequence[int], end: int | None = None) -> None:
        """The next answer: a text, whose control tokens are control tokens, or ids; then the end of it."""
        ids = self.tokenizer.encode(answer, bos=False, special=True) if isinstance(answer, str) else answer
        self._ids = [*ids, min(self.tokenizer.end_ids) if end is None else end]
        self._first = None

    def _step(self, batch: Batch) -> Any:
        rows = []
        for chunk in batch.chunks:
            last = chunk.start + len(chunk.tokens) - 1
            if chunk.n_logits and self._first is None:
                self._first = last
            for position in range(last + 1 - chunk.n_logits, last + 1):
                assert self._first is not None
                row = np.zeros(self._n_vocab, np.float32)
                at = position - self._first
                row[self._ids[min(at, len(self._ids) - 1)]] = 50
                rows.append(row)
        return np.array(rows, np.float32).reshape(len(rows), self._n_vocab)
