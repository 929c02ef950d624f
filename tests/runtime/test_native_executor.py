"""The compiled executor: against transformers on every tiny checkpoint, and bit-identity of any mix."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
from golden.tiny import N_PROMPT, TINY, Tiny, golden

from puna.core import Batch, Chunk, EngineClosed, Unsupported
from puna.model.config import ModelConfig
from puna.model.rope import rope_table
from puna.runtime.cpu import cpu_info
from puna.runtime.native import BLOCK_TOKENS, NativeExecutor
from puna.weights.blocks.quant import dequantize, quantize
from puna.weights.blocks.tensor import RawTensor
from puna.weights.synthetic import synthetic_checkpoint

LOGPROB = 1e-4  # absolute, natural
TARGETS = cpu_info()["available"]


def raw(tensors: dict[str, np.ndarray]) -> dict[str, RawTensor]:
    def data(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values).view(np.uint8).reshape(-1)

    return {name: RawTensor(name, "F32", t.shape, partial(data, t)) for name, t in tensors.items()}


def executor(tiny: Tiny, context: int = 0, **options: object) -> NativeExecutor:
    options = {"cache_tokens": 256, "cache_type": "f32", "threads": 2} | options
    return NativeExecutor(
        tiny.config, raw(tiny.tensors()), rope_table(tiny.config, context or None), **options
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def table(n_tokens: int, first: int = 0) -> array[int]:
    return array("i", range(first, first + -(-n_tokens // BLOCK_TOKENS)))


def full_pass(ex: NativeExecutor, ids: Sequence[int]) -> np.ndarray:
    return ex.step(Batch([Chunk(ids, 0, table(len(ids)), len(ids))])).copy()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
def test_full_pass_is_transformers(tiny: Tiny, target: str) -> None:
    got = log_softmax(full_pass(executor(tiny, tiny.full_context, target=target), tiny.tokens()))
    np.testing.assert_allclose(got, golden(tiny)["logprobs"], rtol=0, atol=LOGPROB)


@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
def test_greedy_is_transformers(tiny: Tiny) -> None:
    ex, expected = executor(tiny, tiny.greedy_context), golden(tiny)
    ids = tiny.tokens()[:N_PROMPT]
    logits = ex.step(Batch([Chunk(ids, 0, table(128), 1)]))
    for _ in expected["greedy"]:
        ids.append(int(logits[-1].argmax()))
        logits = ex.step(Batch([Chunk(ids[-1:], len(ids) - 1, table(128), 1)]))
    assert ids[N_PROMPT:] == expected["greedy"].tolist()


@pytest.mark.parametrize(("cache_type", "worst"), [("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.2)])
def test_smaller_caches_stay_close(cache_type: str, worst: float) -> None:
    for tiny in TINY.values():
        got = log_softmax(full_pass(executor(tiny, tiny.full_context, cache_type=cache_type), tiny.tokens()))
        assert np.abs(np.exp(got) - np.exp(golden(tiny)["logprobs"])).max() < worst, tiny.name


SMALL = ModelConfig(
    dim=256, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=64, ffn_dim=512, vocab_size=160, norm_eps=1e-5,
    rope_theta=1e4, context_length=1024, tied=False,
)  # fmt: skip


@cache
def small(quant: str, threads: int, cache_type: str = "bf16") -> NativeExecutor:
    checkpoint = synthetic_checkpoint(SMALL, quant)
    rope = rope_table(SMALL)
    return NativeExecutor(
        SMALL, checkpoint.tensors, rope, cache_tokens=8192, cache_type=cache_type, threads=threads,
        max_tokens=2048, max_logits=2048,
    )  # fmt: skip


class Walk:
    """A sequence on its way through an executor, in random chunks, its blocks scattered over the cache."""

    def __init__(self, ids: list[int], blocks: list[int], done: int = 0) -> None:
        self.ids, self.blocks, self.done = ids, array("i", blocks), done
        self.logits: list[np.ndarray] = []
        self.cut = 0

    def chunk(self, rng: np.random.Generator) -> Chunk:
        left = len(self.ids) - self.done
        self.cut = int(rng.choice([1, 1, 2, rng.integers(1, left + 1)])) if left > 1 else 1
        self.cut = min(self.cut, left)
        tokens = array("i", self.ids[self.done : self.done + self.cut])
        return Chunk(tokens, self.done, self.blocks, self.cut)


def random_mix(ex: NativeExecutor, rng: np.random.Generator, sequences: list[Walk]) -> None:
    """Runs all sequences to their ends, any subset of them in each step."""
    while waiting := [s for s in sequences if s.done < len(s.ids)]:
        chosen = [s for s in waiting if rng.random() < 0.6] or waiting[:1]
        logits = ex.step(Batch([s.chunk(rng) for s in chosen]))
        row = 0
        for s in chosen:
            s.logits.append(logits[row : row + s.cut].copy())
            s.done += s.cut
            row += s.cut


def check_mixes(executors: list[NativeExecutor], vocab: int, n_mixes: int, longest: int) -> None:
    """Each mix: some sequences, one of them starting from another's cached blocks; all rows equal bits."""
    for seed in range(n_mixes):
        rng = np.random.default_rng(seed)
        ids = [rng.integers(0, vocab, rng.integers(1, longest)).tolist() for _ in range(rng.integers(1, 4))]
        expected = [full_pass(executors[0], x) for x in ids]
        ex = executors[seed % len(executors)]
        free = rng.permutation(ex.n_blocks).tolist()
        sequences = [Walk(x, [free.pop() for _ in table(len(x))]) for x in ids]
        random_mix(ex, rng, sequences)
        cached = len(ids[0]) // 2 // BLOCK_TOKENS  # full blocks of the first sequence, reused by a new one
        again = Walk(
            ids[0], [*sequences[0].blocks[:cached], *free[: len(table(len(ids[0])))]], cached * BLOCK_TOKENS
        )
        random_mix(ex, rng, [again])
        for s, rows in zip(sequences, expected, strict=True):
            np.testing.assert_array_equal(np.concatenate(s.logits), rows)
        np.testing.assert_array_equal(np.concatenate(again.logits), expected[0][cached * BLOCK_TOKENS :])


@pytest.mark.parametrize("cache_type", ["bf16", "f16", "f32", "q8_0"])
@pytest.mark.parametrize("quant", ["q4_k_m", "q4_0", "q8_0", "bf16", "f16"])
def test_any_mix_gives_the_same_bits(quant: str, cache_type: str) -> None:
    check_mixes([small(quant, 2, cache_type), small(quant, 1, cache_type)], SMALL.vocab_size, 6, 600)


def test_more_threads_than_blocks_of_tokens() -> None:
    """Then several threads share a block's home, and help each other out."""
    check_mixes([small("q4_0", n, "bf16") for n in (1, 3, 5)], SMALL.vocab_size, 4, 600)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_norms_may_have_any_type(kind: str) -> None:
    checkpoint = synthetic_checkpoint(SMALL, "q8_0")
    tensors, as_float = dict(checkpoint.tensors), dict(checkpoint.tensors)
    for name in [name for name, tensor in tensors.items() if len(tensor.shape) == 1]:
        values = dequantize(tensors[name].data(), "F32", tensors[name].shape)
        data = quantize(values, kind)
        tensors[name] = RawTensor(name, kind, values.shape, partial(lambda x: x, data))
        as_float |= raw({name: dequantize(data, kind, values.shape)})
    executors = [NativeExecutor(SMALL, x, rope_table(SMALL), cache_tokens=64) for x in (tensors, as_float)]
    got, expected = (full_pass(ex, range(20)) for ex in executors)
    np.testing.assert_array_equal(got, expected)


def test_wanted_rows_are_the_last_of_each_chunk() -> None:
    ex = small("q4_0", 2)
    ids = list(range(50))
    every = full_pass(ex, ids)
    np.testing.assert_array_equal(ex.step(Batch([Chunk(ids, 0, table(50), 3)])), every[-3:])
    both = ex.step(Batch([Chunk(ids, 0, table(50), 0), Chunk(ids[:7], 0, table(7, 10), 2)]))
    np.testing.assert_array_equal(both, every[5:7])
    assert ex.step(Batch([Chunk(ids, 0, table(50), 0)])).shape == (0, SMALL.vocab_size)


@pytest.mark.parametrize(("shape", "message"), [
    ({"dim": 200}, "dim must be a multiple of 16, as kernels need, found 200"),
    ({"ffn_dim": 511}, "ffn_dim must be a multiple of 2"),
    ({"head_dim": 48}, "head_dim must be a multiple of 32"),
])  # fmt: skip
def test_shapes_without_a_kernel_are_refused(shape: dict[str, int], message: str) -> None:
    cfg = replace(SMALL, **shape)
    with pytest.raises(Unsupported, match=message):
        NativeExecutor(cfg, synthetic_checkpoint(cfg, "f32").tensors, rope_table(cfg), cache_tokens=64)


def test_closed_executor_says_so() -> None:
    ex = executor(TINY["llama1"])
    ex.close()
    with pytest.raises(EngineClosed, match="closed"):
        ex.step(Batch([Chunk([0], 0, table(1), 1)]))
