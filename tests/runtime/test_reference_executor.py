"""The definition over the numpy ops, against transformers and llama.cpp on every tiny checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from golden.tiny import N_PROMPT, TINY, Tiny, golden, in_gguf, write_gguf

from puna.core import Batch, Chunk
from puna.model import names
from puna.model.config import from_gguf
from puna.runtime.reference import ReferenceExecutor

tinies = pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
LOGPROB = 1e-4  # absolute, natural


def executor(tiny: Tiny, context: int = 0, block_size: int = 16) -> ReferenceExecutor:
    n_blocks = 512 // block_size
    return ReferenceExecutor(
        tiny.config, tiny.tensors(), n_blocks=n_blocks, block_size=block_size, context_length=context or None
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def blocks_for(ex: ReferenceExecutor, first: int = 0) -> range:
    return range(first, first + -(-128 // ex.block_size))


def full_pass(ex: ReferenceExecutor, ids: Sequence[int]) -> np.ndarray:
    return log_softmax(ex.step(Batch([Chunk(ids, 0, blocks_for(ex), len(ids))])))


@tinies
def test_full_pass_is_transformers(tiny: Tiny) -> None:
    got = full_pass(executor(tiny, tiny.full_context), tiny.tokens())
    expected = golden(tiny)
    np.testing.assert_allclose(got, expected["logprobs"], rtol=0, atol=LOGPROB)
    if "llamacpp_logprobs" in expected:
        np.testing.assert_allclose(got, expected["llamacpp_logprobs"], rtol=0, atol=LOGPROB)


@tinies
def test_greedy_is_transformers(tiny: Tiny) -> None:
    ex, expected = executor(tiny, tiny.greedy_context), golden(tiny)
    ids, chosen = tiny.tokens()[:N_PROMPT], []
    logits = ex.step(Batch([Chunk(ids, 0, blocks_for(ex), 1)]))
    for _ in expected["greedy"]:
        ids.append(int(logits[-1].argmax()))
        chosen.append(log_softmax(logits)[-1].max())
        logits = ex.step(Batch([Chunk(ids[-1:], len(ids) - 1, blocks_for(ex), 1)]))
    assert ids[N_PROMPT:] == expected["greedy"].tolist()
    np.testing.assert_allclose(chosen, expected["greedy_logprobs"], rtol=0, atol=LOGPROB)


def test_goldens_tell_scalings_apart() -> None:
    """Leaving a scaling out changes the answers a thousand times more than the tolerance."""
    for name in ("llama31", "llama32", "linear", "dynamic", "yarn", "longrope"):
        tiny = TINY[name]
        plain = Tiny(name, {k: v for k, v in tiny.hf.items() if k != "rope_scaling"})
        got = full_pass(executor(plain, tiny.full_context), tiny.tokens())
        assert np.abs(got - golden(tiny)["logprobs"]).max() > 1000 * LOGPROB, name


@pytest.mark.parametrize("block_size", [1, 7, 16, 64])
@pytest.mark.parametrize("cuts", [[1] * 96, [5, 91], [16, 16, 1, 63], [95, 1], [33, 31, 32]])
def test_chunks_equal_the_full_pass(cuts: list[int], block_size: int) -> None:
    tiny = TINY["llama31"]
    ex, ids, rows = executor(tiny, block_size=block_size), tiny.tokens(), []
    blocks = blocks_for(ex)[::-1]
    start = 0
    for n in cuts:
        rows.append(ex.step(Batch([Chunk(ids[start : start + n], start, blocks, n)])))
        start += n
    np.testing.assert_allclose(
        log_softmax(np.concatenate(rows)), golden(tiny)["logprobs"], rtol=0, atol=LOGPROB
    )


def test_mixed_batch_equals_single() -> None:
    """Three sequences at different depths, prefill and decode in one step, one of them over shared blocks."""
    tiny = TINY["llama3"]
    ex, ids, expected = executor(tiny), tiny.tokens(), golden(tiny)["logprobs"]
    ex.step(Batch([Chunk(ids[:32], 0, [0, 1], 1), Chunk(ids[:40], 0, [4, 5, 6], 0)]))
    logits = ex.step(
        Batch(
            [
                Chunk(ids[40:41], 40, [4, 5, 6], 1),  # decode
                Chunk(ids[32:80], 32, [0, 1, 9, 10, 8], 3),  # a later chunk
                Chunk(ids[:20], 0, [12, 13], 20),  # a new prompt
                Chunk(ids[32:34], 32, [0, 1, 3], 2),  # another sequence with the first one's prefix
                Chunk(ids[:5], 0, [14], 0),  # nothing wanted
            ]
        )
    )
    wanted = [40, 77, 78, 79, *range(20), 32, 33]
    np.testing.assert_allclose(log_softmax(logits), expected[wanted], rtol=0, atol=LOGPROB)


@pytest.mark.parametrize("tiny", [t for t in TINY.values() if in_gguf(t)], ids=lambda t: t.name)
def test_gguf_file_gives_the_same(tiny: Tiny, tmp_path: Path) -> None:
    from puna.weights.blocks.quant import dequantize
    from puna.weights.files.gguf import GgufFile

    write_gguf(tiny, tmp_path / "tiny.gguf")
    with GgufFile.open(tmp_path / "tiny.gguf") as file:
        arrays = {n: dequantize(file.data(n), t.kind, t.shape) for n, t in file.tensors.items()}
        cfg = from_gguf(file.metadata, {n: t.shape for n, t in file.tensors.items()}, arrays.__getitem__)
    tensors = {str(names.from_gguf(n)): array for n, array in arrays.items()}
    names.check_shapes(cfg, {n: array.shape for n, array in tensors.items()})
    ex = ReferenceExecutor(cfg, tensors, n_blocks=32, context_length=tiny.full_context or None)
    np.testing.assert_allclose(full_pass(ex, tiny.tokens()), golden(tiny)["logprobs"], rtol=0, atol=LOGPROB)


def test_executor_describes_itself() -> None:
    ex = executor(TINY["llama2"])
    assert (ex.vocab_size, ex.context_length, ex.n_blocks, ex.block_size) == (96, 128, 32, 16)
    ex.close()
    with pytest.raises(AttributeError):
        ex.step(Batch([Chunk([0], 0, [0], 1)]))
