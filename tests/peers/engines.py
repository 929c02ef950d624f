"""The same question to three engines: log-probabilities of every next token of a text, teacher-forced.

Each answer is a float32 array [T, V] of natural-log probabilities, row t of the token after ids[:t + 1].

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch, Chunk, Executor, TokenLogprob
from puna.model.rope import rope_table
from puna.runtime.native import NativeExecutor
from puna.runtime.reference import ReferenceExecutor
from puna.text.tokenizer import Tokenizer
from puna.weights.blocks.quant import dequantize
from puna.weights.load import open_checkpoint

Logprobs = NDArray[np.float32]
WINDOW = 512  # the most tokens of a question


class Asked(Protocol):
    def __call__(self, ids: Sequence[int]) -> Logprobs: ...


def log_softmax(logits_TV: NDArray[np.float32]) -> Logprobs:
    shifted_TV = logits_TV - logits_TV.max(axis=1, keepdims=True)
    shifted_TV -= np.log(np.exp(shifted_TV.astype(np.float64)).sum(axis=1, keepdims=True)).astype(np.float32)
    return shifted_TV


def ours(path: Path, **options: Any) -> Asked:
    """The native executor, in one chunk."""
    with open_checkpoint(path) as checkpoint:
        rope = rope_table(checkpoint.config)
        executor = NativeExecutor(
            checkpoint.config, checkpoint.tensors, rope, cache_tokens=WINDOW, max_tokens=WINDOW, **options
        )
    return _ask(executor)


def float_oracle(path: Path) -> Asked:
    """The numpy executor in float32 on the dequantized weights."""
    with open_checkpoint(path) as checkpoint:
        tensors = {
            name: dequantize(tensor.data(), tensor.kind, tensor.shape)
            for name, tensor in checkpoint.tensors.items()
        }
        executor = ReferenceExecutor(checkpoint.config, tensors, n_blocks=WINDOW // 16)
    return _ask(executor)


def _ask(executor: Executor) -> Asked:
    blocks = array("i", range(executor.n_blocks))

    def ask(ids: Sequence[int]) -> Logprobs:
        return log_softmax(executor.step(Batch([Chunk(array("i", ids), 0, blocks, len(ids))])))

    return ask


_KEPT: list[Any] = []  # what the library calls for as long as the process lives, whoever set it


class LlamaCpp:
    """llama.cpp through its own interface, with its defaults: a cache of F16, flash attention if it likes."""

    def __init__(self, path: Path, threads: int) -> None:
        lib = import_module("llama_cpp")
        _KEPT.append(lib.llama_log_callback(lambda level, text, data: None))
        lib.llama_log_set(_KEPT[-1], None)
        lib.llama_backend_init()
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = WINDOW
        params.n_threads = params.n_threads_batch = threads
        model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        self._lib, self._context = lib, lib.llama_init_from_model(model, params)
        self._n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._batch = lib.llama_batch_init(WINDOW, 0, 1)

    def __call__(self, ids: Sequence[int]) -> Logprobs:
        self._forget()
        return log_softmax(self._logits(ids, 0))

    def write(self, prompt: Sequence[int], n: int, end: int) -> list[int]:
        """Continue greedily, a token at a time, up to n tokens in all or the end token."""
        self._forget()
        ids, n_done = list(prompt), 0
        while len(ids) < n and (n_done == 0 or ids[-1] != end):
            logits_TV = self._logits(ids[n_done:], n_done)
            n_done = len(ids)
            ids.append(int(logits_TV[-1].argmax()))
        return ids

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _logits(self, ids: Sequence[int], start: int) -> NDArray[np.float32]:
        """[T, V] of tokens at positions start and on; valid until the next call."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert self._lib.llama_decode(self._context, batch) == 0
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (len(ids), self._n_vocab))


def scorer(ask: Asked) -> Callable[[list[int]], list[TokenLogprob]]:
    """What evals.perplexity calls: the log-probability of every token after the first."""

    def score(ids: list[int]) -> list[TokenLogprob]:
        logprobs_TV = ask(ids)
        return [TokenLogprob(token, float(logprobs_TV[t, token])) for t, token in enumerate(ids[1:])]

    return score


PROMPTS = (
    "Why is the sky blue?",
    "Write a short story about a llama who lives in the mountains.",
    "Explain how a bicycle stays upright.",
    "What are the causes of the First World War?",
    "Give me a recipe for vegetable soup.",
    "Write a Python function that reverses a string, and explain it.",
    "What is photosynthesis?",
    "Describe the city of Lima to a visitor.",
)
END = "<|im_end|>"


def answers(llama_cpp: LlamaCpp, tokenizer: Tokenizer, length: int) -> Iterator[tuple[int, list[int]]]:
    """What llama.cpp answers greedily to each of PROMPTS: tokens of the prompt, and all ids."""
    for prompt in PROMPTS:
        text = f"<|im_start|>user\n{prompt}{END}\n<|im_start|>assistant\n"
        ids = tokenizer.encode(text, bos=False, special=True)
        yield len(ids), llama_cpp.write(ids, length, tokenizer.id(END))
