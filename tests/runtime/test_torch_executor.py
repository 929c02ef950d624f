"""The torch executor: against transformers on every tiny checkpoint, in any mix of chunks, in any type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from golden.tiny import N_PROMPT, TINY, Tiny, golden

torch = pytest.importorskip("torch")

from puna.core import BadValue, Batch, Chunk, EngineClosed  # noqa: E402
from puna.model.rope import rope_table  # noqa: E402
from puna.runtime.torch import BLOCK_TOKENS, TorchExecutor, choose_device  # noqa: E402
from puna.weights.blocks.quant import dequantize, quantize  # noqa: E402
from puna.weights.blocks.tensor import RawTensor  # noqa: E402

LOGPROB = 1e-4  # absolute, natural
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def stored(tensors: dict[str, np.ndarray], kind: str = "F32") -> dict[str, RawTensor]:
    def data(values: np.ndarray, kind: str) -> np.ndarray:
        return (
            quantize(values, kind)
            if kind != "F32"
            else np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        )

    kinds = {name: kind if t.ndim > 1 else "F32" for name, t in tensors.items()}
    return {
        name: RawTensor(name, kinds[name], t.shape, partial(data, t, kinds[name]))
        for name, t in tensors.items()
    }


def executor(tiny: Tiny, context: int = 0, kind: str = "F32", **options: object) -> TorchExecutor:
    options = {"cache_tokens": 512, "device": "cpu", "dtype": "f32"} | options
    rope = rope_table(tiny.config, context or None)
    return TorchExecutor(tiny.config, stored(tiny.tensors(), kind), rope, **options)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def table(n_tokens: int, first: int = 0) -> range:
    return range(first, first + -(-n_tokens // BLOCK_TOKENS))


def full_pass(ex: TorchExecutor, ids: Sequence[int]) -> np.ndarray:
    return log_softmax(ex.step(Batch([Chunk(ids, 0, table(len(ids)), len(ids))])))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
def test_full_pass_is_transformers(tiny: Tiny, device: str) -> None:
    got = full_pass(executor(tiny, tiny.full_context, device=device), tiny.tokens())
    np.testing.assert_allclose(got, golden(tiny)["logprobs"], rtol=0, atol=LOGPROB)


@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
def test_greedy_is_transformers(tiny: Tiny) -> None:
    ex, expected = executor(tiny, tiny.greedy_context), golden(tiny)
    ids = tiny.tokens()[:N_PROMPT]
    logits = ex.step(Batch([Chunk(ids, 0, table(96), 1)]))
    for _ in expected["greedy"]:
        ids.append(int(logits[-1].argmax()))
        logits = ex.step(Batch([Chunk(ids[-1:], len(ids) - 1, table(96), 1)]))
    assert ids[N_PROMPT:] == expected["greedy"].tolist()


@pytest.mark.parametrize("cuts", [[1] * 96, [5, 91], [16, 16, 1, 63], [95, 1], [33, 31, 32]])
def test_chunks_equal_the_full_pass(cuts: list[int]) -> None:
    tiny = TINY["llama31"]
    ex, ids, rows, start = executor(tiny), tiny.tokens(), [], 0
    for n in cuts:
        rows.append(ex.step(Batch([Chunk(ids[start : start + n], start, table(96)[::-1], n)])))
        start += n
    np.testing.assert_allclose(
        log_softmax(np.concatenate(rows)), golden(tiny)["logprobs"], rtol=0, atol=LOGPROB
    )


def test_mixed_batch_equals_single() -> None:
    """Different depths, chunks of equal and of different lengths, shared blocks, nothing wanted."""
    tiny = TINY["llama3"]
    ex, ids, expected = executor(tiny), tiny.tokens(), golden(tiny)["logprobs"]
    ex.step(Batch([Chunk(ids[:32], 0, [0], 1), Chunk(ids[:40], 0, [2, 3], 0)]))
    logits = ex.step(
        Batch(
            [
                Chunk(ids[40:41], 40, [2, 3], 1),  # decode
                Chunk(ids[32:80], 32, [0, 9, 8], 3),  # a later chunk
                Chunk(ids[:20], 0, [12], 20),  # a new prompt
                Chunk(ids[32:33], 32, [0, 5], 1),  # another sequence with the second one's prefix
                Chunk(ids[:5], 0, [14], 0),
            ]
        )
    )
    wanted = [40, 77, 78, 79, *range(20), 32]
    np.testing.assert_allclose(log_softmax(logits), expected[wanted], rtol=0, atol=LOGPROB)


def test_what_lies_in_other_blocks_does_not_matter() -> None:
    tiny = TINY["llama3"]
    ex, ids, expected = executor(tiny), tiny.tokens(), golden(tiny)["logprobs"]
    [part.fill_(float("inf")) for part in ex._cache.keys]
    [part.fill_(float("nan")) for part in ex._cache.values]
    ex.step(Batch([Chunk(ids[:40], 0, [2, 3], 0), Chunk(ids[:3], 0, [5], 0)]))
    logits = ex.step(Batch([Chunk(ids[40:41], 40, [2, 3], 1), Chunk(ids[3:4], 3, [5], 1)]))
    np.testing.assert_allclose(log_softmax(logits), expected[[40, 3]], rtol=0, atol=LOGPROB)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_block_formats_are_decoded(kind: str) -> None:
    tiny = TINY["llama32"]
    tensors = {
        n: dequantize(quantize(t, kind), kind, t.shape) if t.ndim > 1 else t
        for n, t in tiny.tensors().items()
    }
    plain = TorchExecutor(
        tiny.config, stored(tensors), rope_table(tiny.config), cache_tokens=128, device="cpu", dtype="f32"
    )
    got = full_pass(executor(tiny, kind=kind), tiny.tokens())
    np.testing.assert_allclose(got, full_pass(plain, tiny.tokens()), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.6), ("f16", 0.08)])
def test_half_types_stay_near(dtype: str, bound: float) -> None:
    tiny = TINY["llama31"]
    got = full_pass(executor(tiny, dtype=dtype), tiny.tokens())
    assert 1e-4 < np.abs(got - golden(tiny)["logprobs"]).max() < bound


def test_wrong_options_are_named() -> None:
    with pytest.raises(BadValue, match=r"got 'warp'"):
        choose_device("warp")
    with pytest.raises(BadValue, match=r"cuda:99|cuda"):
        choose_device("cuda:99")
    with pytest.raises(
        BadValue, match=r"dtype of the torch executor must be one of bf16, f16, f32, got 'int3'"
    ):
        executor(TINY["llama3"], dtype="int3")
    ex = executor(TINY["llama3"])
    ex.close()
    with pytest.raises(EngineClosed):
        ex.step(Batch([Chunk([0], 0, [0], 1)]))
