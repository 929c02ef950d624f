"""Decode steps over fixed buffers: the same answers as steps of their own size."""

from __future__ import annotations

import numpy as np
import pytest
from golden.tiny import TINY, golden

torch = pytest.importorskip("torch")

from runtime.test_torch_executor import LOGPROB, executor, log_softmax, table  # noqa: E402

from puna.core import Batch, Chunk  # noqa: E402
from puna.runtime.torch_graphs import DecodeSteps  # noqa: E402


def decode(ids: list[int], position: int, blocks: list[int] | range) -> Chunk:
    return Chunk(ids[position : position + 1], position, blocks, 1)


@pytest.mark.parametrize("device", ["cpu"] + (["cuda"] if torch.cuda.is_available() else []))
def test_padded_batches_of_changing_size(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of one size serve several batches; neither padding nor other blocks show."""
    tiny = TINY["llama3"]
    ex = executor(tiny, static_decode=True, device=device)
    ids, expected = tiny.tokens(), golden(tiny)["logprobs"]
    [part.fill_(float("inf")) for part in ex._cache.keys]
    [part.fill_(float("nan")) for part in ex._cache.values]
    ex.step(Batch([Chunk(ids[:50], 0, [2, 3], 0), Chunk(ids[:31], 0, [5], 0), Chunk(ids[:3], 0, [7], 0)]))
    monkeypatch.setattr(ex, "_forward", None)  # a step of its own size would fail
    for first, second, third in ((50, 31, 3), (51, 32, 4), (52, 33, 5)):
        batch = Batch([decode(ids, first, [2, 3]), decode(ids, second, [5, 9]), decode(ids, third, [7])])
        np.testing.assert_allclose(
            log_softmax(ex.step(batch)), expected[[first, second, third]], rtol=0, atol=LOGPROB
        )
    alone = ex.step(Batch([decode(ids, 53, [2, 3])]))
    np.testing.assert_allclose(log_softmax(alone), expected[[53]], rtol=0, atol=LOGPROB)
    assert set(ex._decode._sizes) == {(4, 256), (1, 256)}


def test_what_is_padded_and_what_is_not() -> None:
    size_of = DecodeSteps.size_of
    steps = DecodeSteps.__new__(DecodeSteps)
    one = Chunk([0], 9, [0], 1)
    assert size_of(steps, Batch([one])) == (1, 256)
    assert size_of(steps, Batch([one] * 9)) == (16, 256)
    assert size_of(steps, Batch([Chunk([0], 256, range(9), 1)])) == (1, 512)
    assert size_of(steps, Batch([one] * 65)) is None
    assert size_of(steps, Batch([one, Chunk([0, 1], 0, [0], 1)])) is None  # a prompt
    assert size_of(steps, Batch([Chunk([0], 0, [0], 0)])) is None  # no logits wanted
    deep = Chunk([0], 100_000, table(100_001), 1)
    assert size_of(steps, Batch([deep] + [one] * 31)) is None  # 31 short ones padded to it
    assert size_of(steps, Batch([deep])) == (1, 131_072)
