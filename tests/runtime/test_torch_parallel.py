"""Tensor parallel: parts of a model in one process, and real ranks over gloo, against the whole model."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from golden.tiny import TINY, write_gguf

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from runtime.test_llama4 import model, stored  # noqa: E402

from puna.core import BadValue, Batch, Chunk, EngineClosed, WorkFailed  # noqa: E402
from puna.model.rope import rope_table  # noqa: E402
from puna.runtime.torch import TorchExecutor  # noqa: E402
from puna.runtime.torch_parallel import ParallelExecutor  # noqa: E402
from puna.runtime.torch_shard import Shard, check_ranks  # noqa: E402
from puna.weights.adapter import Adapter  # noqa: E402
from puna.weights.blocks.quant import dequantize, quantize  # noqa: E402
from puna.weights.blocks.tensor import RawTensor  # noqa: E402
from puna.weights.load import open_checkpoint  # noqa: E402

LOGPROB = 2e-5  # absolute, natural, to one process; which moves as far when it cuts a prompt otherwise


def parallel(path: Path, size: int, **options: Any) -> ParallelExecutor:
    with open_checkpoint(path) as checkpoint:
        config = checkpoint.config
        return ParallelExecutor(
            config, checkpoint.tensors, rope_table(config), model=path, size=size, device="cpu", threads=size,
            cache_tokens=256, **options,
        )  # fmt: skip


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def alone(path: Path) -> TorchExecutor:
    with open_checkpoint(path) as checkpoint:
        rope = rope_table(checkpoint.config)
        return TorchExecutor(checkpoint.config, checkpoint.tensors, rope, cache_tokens=256, device="cpu")


def test_two_ranks_are_one(tmp_path: Path) -> None:
    """A tied table, prefill and decode; and the death of a rank."""
    tiny, path = TINY["llama32"], tmp_path / "model.gguf"
    write_gguf(tiny, path)
    ex, one, ids = parallel(path, 2), alone(path), tiny.tokens()
    for batch in (Batch([Chunk(ids[:95], 0, [4, 0, 2], 95)]), Batch([Chunk(ids[95:], 95, [4, 0, 2], 1)])):
        got, expected = log_softmax(ex.step(batch)), log_softmax(one.step(batch))
        np.testing.assert_allclose(got, expected, rtol=0, atol=LOGPROB)
    batch = Batch([Chunk(ids[:95], 0, [4, 0, 2], 95)])
    np.testing.assert_allclose(ex.embed(batch), one.embed(batch), rtol=0, atol=1e-4)
    with pytest.raises(BadValue, match="adapters need the whole model in one process"):
        ex.prepare_adapter(Adapter({}))
    os.kill(ex._workers[0]._process.pid, signal.SIGKILL)
    with pytest.raises(WorkFailed, match=r"rank 1 ended with status -9, so that .* load the model again"):
        ex.step(Batch([Chunk(ids[:95], 0, [4, 0, 2], 1)]))
    with pytest.raises(EngineClosed, match="rank 1 ended with status -9; load the model again"):
        ex.step(Batch([Chunk(ids[:95], 0, [4, 0, 2], 1)]))
    ex.close()


def test_four_ranks_share_two_heads(tmp_path: Path) -> None:
    """Fewer key/value heads than ranks; closing ends the processes."""
    tiny, path = TINY["llama2"], tmp_path / "model.gguf"
    write_gguf(tiny, path)
    ex, ids = parallel(path, 4), tiny.tokens()
    batch = Batch([Chunk(ids, 0, [1, 2, 3], 96)])
    np.testing.assert_allclose(
        log_softmax(ex.step(batch)), log_softmax(alone(path).step(batch)), rtol=0, atol=LOGPROB
    )
    ex.close()
    assert [worker._process.returncode for worker in ex._workers] == [0, 0, 0]
    with pytest.raises(EngineClosed):
        ex.step(batch)


class Thread:
    """A rank that is a thread of this process."""

    def __init__(self, rank: int, shared: list[Any], barrier: Barrier) -> None:
        self.rank, self.size = rank, len(shared)
        self._shared, self._barrier = shared, barrier

    def _all(self, x: Any) -> list[Any]:
        self._shared[self.rank] = x
        self._barrier.wait(60)
        parts = list(self._shared)
        self._barrier.wait(60)
        return parts

    def add_up(self, x: Any) -> Any:
        return sum(self._all(x))

    def gather(self, x: Any) -> list[Any]:
        return self._all(x)


@pytest.mark.parametrize(("name", "size"), [("maverick", 2), ("two_experts", 4)])
def test_experts_are_shared(name: str, size: int) -> None:
    m = model(name)
    batch = Batch([Chunk(m.tokens, 0, [5, 2, 9], 80)])
    shared, barrier = [None] * size, Barrier(size)
    ranks = [
        TorchExecutor(
            m.config, stored(m.tensors), rope_table(m.config), cache_tokens=512, device="cpu",
            ranks=Thread(rank, shared, barrier),
        )
        for rank in range(size)
    ]  # fmt: skip
    with ThreadPoolExecutor(size) as pool:
        logits = list(pool.map(lambda ex: ex.step(batch), ranks))
    np.testing.assert_allclose(log_softmax(logits[0]), m.expected, rtol=0, atol=1e-4)


def test_a_rank_that_cannot_load(tmp_path: Path) -> None:
    tiny = TINY["llama2"]
    write_gguf(tiny, tmp_path / "model.gguf")
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint, pytest.raises(
        WorkFailed, match=r"rank 1 failed: .*gone\.gguf.*; the model could not be loaded"
    ):  # fmt: skip
        ParallelExecutor(
            checkpoint.config, checkpoint.tensors, rope_table(checkpoint.config), model=tmp_path /
            "gone.gguf", size=2, device="cpu", cache_tokens=64,
        )  # fmt: skip


class Alone:
    """A rank whose sums and parts are looked at from outside."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("name", "axis"), [("w1", 0), ("w2", 1), ("wk", 0), ("output", 0)])
def test_parts_make_up_the_whole(kind: str, name: str, axis: int) -> None:
    """Rows, columns in whole blocks and others, a vocabulary that two ranks cannot halve."""
    config = replace(TINY["llama2"].config, vocab_size=97)
    shape = {"w1": (352, 128), "w2": (128, 352), "wk": (64, 128), "output": (97, 128)}[name]
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    data = quantize(values, kind)
    tensor = RawTensor(name, kind, shape, lambda: data)
    parts = [Shard(Alone(rank, 2), config).cut(tensor) for rank in range(2)]
    got = np.concatenate([dequantize(p.data(), p.kind, p.shape) for p in parts], axis)
    np.testing.assert_array_equal(got[: shape[0]], dequantize(data, kind, shape))
    assert not got[shape[0] :].any()


def test_numbers_of_ranks_that_cannot_be() -> None:
    config = TINY["llama2"].config
    with pytest.raises(BadValue, match=r"divide the 4 heads of this model, got 3; use 2 or 4$"):
        check_ranks(config, 3)
    with pytest.raises(BadValue, match=r"divide the 350 feed-forward columns of this model, got 4; use 2$"):
        check_ranks(replace(config, ffn_dim=350), 4)
    with pytest.raises(BadValue, match="shares out text models only, got 2 for one with images"):
        check_ranks(replace(config, cross_attention=(1,)), 2)
    with pytest.raises(BadValue, match="divide the 3 key/value heads of this model, got 2; use 3"):
        check_ranks(replace(config, n_heads=6, n_kv_heads=3, ffn_dim=360), 2)
