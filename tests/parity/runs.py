"""The same model on each of our executors: prefill in chunks, then greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from parity.features import LONG
from parity.oracle import Floats, Oracle, log_softmax

from puna.core import Batch, Chunk
from puna.model.config import ModelConfig
from puna.model.rope import rope_table

EXECUTORS = ("numpy", "torch", "native")
N_GREEDY = 12
CONTEXT = LONG + N_GREEDY - 1  # of the whole run, which is what dynamic scalings are made for


@dataclass(frozen=True)
class Run:
    logprobs: Floats  # [prompt + N_GREEDY - 1, V]
    greedy: list[int]
    max_error: float  # against transformers, absolute, over all rows


def compare(oracle: Oracle, executor: str, step: int = 512, config: ModelConfig | None = None) -> Run:
    """Run prompt and greedy continuation, `step` tokens of the prompt at a time; `config` to change some."""
    with closing(_executor(oracle, executor, config or oracle.config)) as ex:
        rows, greedy = [], []
        for logits in _rows(ex, oracle.tokens, step):
            rows.append(log_softmax(logits))
            if len(rows) * step >= len(oracle.tokens):
                greedy.append(int(logits[-1].argmax()))
    logprobs = np.concatenate(rows)
    tokens = [*oracle.tokens, *greedy[:-1]]
    return Run(logprobs, greedy, float(np.abs(logprobs - oracle.logprobs(tokens)).max()))


def _rows(ex: Any, tokens: list[int], step: int) -> Iterator[Any]:
    blocks = range(1, 1 + -(-(len(tokens) + N_GREEDY) // ex.block_size))
    for start in range(0, len(tokens), step):
        part = tokens[start : start + step]
        logits = ex.step(Batch([Chunk(part, start, blocks, len(part))]))
        yield logits.copy()
    for position in range(len(tokens), len(tokens) + N_GREEDY - 1):
        logits = ex.step(Batch([Chunk([int(logits[-1].argmax())], position, blocks, 1)]))
        yield logits.copy()


def embed(oracle: Oracle, executor: str, step: int) -> Any:
    """What would be multiplied by the output matrix, for all tokens of the prompt [T, D]."""
    with closing(_executor(oracle, executor, oracle.config)) as ex:
        tokens, rows = oracle.tokens, []
        blocks = range(1, 1 + -(-len(tokens) // ex.block_size))
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            rows.append(ex.embed(Batch([Chunk(part, start, blocks, len(part))])).copy())
            assert rows[-1].shape == (len(part), ex.embedding_dim)
    return np.concatenate(rows)


def _executor(oracle: Oracle, kind: str, config: ModelConfig) -> Any:
    context = max(CONTEXT, config.context_length) if oracle.feature.n_tokens < LONG else CONTEXT
    rope, room = rope_table(config, context), CONTEXT + 64
    if kind == "numpy":
        from puna.runtime.reference import ReferenceExecutor

        return ReferenceExecutor(config, oracle.tensors, n_blocks=room // 16, context_length=context)
    if kind == "torch":
        from puna.runtime.torch import TorchExecutor

        return TorchExecutor(
            config, oracle.stored(), rope, cache_tokens=room, device="cpu", dtype="f32", cache_type="f32"
        )
    from puna.runtime.native import NativeExecutor

    return NativeExecutor(config, oracle.stored(), rope, cache_tokens=room, cache_type="f32")
