"""Embeddings of the Python API: what they are made of, and that nothing else shows in them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llm.tiny_llm import write_tiny_llm

from puna import LLM
from puna.core import BadValue, Batch, Chunk, PromptTooLong
from puna.runtime.reference import ReferenceExecutor
from puna.weights.blocks.quant import dequantize
from puna.weights.files.values import Metadata, Value, ValueType
from puna.weights.load import open_checkpoint, write_checkpoint

TEXTS = ["the", "the other day " * 25, "the other day " * 25 + "I", "An alpaca.", "the other day"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("embed") / "tiny.gguf")


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, threads=2, batch=16) as llm:
        yield llm


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_pooled_rows(llm: LLM, path: Path, pooling: str) -> None:
    """Against the numpy executor, which computes in float32 what the CPU's own computes in 8 bits."""
    with open_checkpoint(path) as checkpoint:
        tensors = {n: dequantize(t.data(), t.kind, t.shape) for n, t in checkpoint.tensors.items()}
        numpy = ReferenceExecutor(checkpoint.config, tensors, n_blocks=64)
    for text in TEXTS:
        ids = llm.tokenizer.encode(text)
        rows = numpy.embed(Batch([Chunk(ids, 0, range(64), len(ids))]))
        expected = rows[-1] if pooling == "last" else rows.mean(axis=0)
        found = llm.embed(text, pooling=pooling, normalize=False)  # type: ignore[arg-type]
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
        unit = llm.embed(text, pooling=pooling)  # type: ignore[arg-type]
        assert float(np.linalg.norm(unit)) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(unit * np.linalg.norm(found), found, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_bits_depend_on_the_text_alone(llm: LLM, path: Path, pooling: str) -> None:
    """Not on the batch, on chunks, on the prefix cache, on answers beside it, or on the number of threads."""
    with LLM(path, threads=1) as alone:
        expected = [alone.embed(text, pooling=pooling) for text in TEXTS]  # type: ignore[call-overload]
    for _ in range(2):
        np.testing.assert_array_equal(llm.embed(TEXTS, pooling=pooling), expected)  # type: ignore[arg-type]
    told = llm.generate(TEXTS[4], temperature=0, max_tokens=30).text
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(llm.generate, TEXTS[4], temperature=0, max_tokens=30) for _ in range(2)]
        found = pool.submit(llm.embed, TEXTS, pooling=pooling)
        np.testing.assert_array_equal(found.result(), expected)
        assert {answer.result().text for answer in answers} == {told}


def test_ids_are_embedded_as_texts_are(llm: LLM) -> None:
    ids = llm.tokenizer.encode(TEXTS[3])
    np.testing.assert_array_equal(llm.embed(ids), llm.embed(TEXTS[3]))
    assert llm.embed([ids, ids]).shape == (2, llm.config.dim)


def test_a_file_may_ask_for_another_pooling_than_last(llm: LLM, path: Path, tmp_path: Path) -> None:
    np.testing.assert_array_equal(llm.embed("the day"), llm.embed("the day", pooling="last"))
    asks_for_mean = with_pooling(path, tmp_path / "mean.gguf", 1)
    with LLM(asks_for_mean, threads=1) as other:
        np.testing.assert_array_equal(other.embed("the day"), llm.embed("the day", pooling="mean"))
    with LLM(with_pooling(path, tmp_path / "cls.gguf", 2), threads=1) as other:
        with pytest.raises(BadValue, match="must be last or mean, got 'cls'"):
            other.embed("the day")
        np.testing.assert_array_equal(other.embed("the day", pooling="last"), llm.embed("the day"))


def with_pooling(path: Path, to: Path, number: int) -> Path:
    with open_checkpoint(path) as checkpoint:
        more = {"llama.pooling_type": Value.of(ValueType.UINT32, number)}
        write_checkpoint(replace(checkpoint, metadata=Metadata(checkpoint.metadata.encoded | more)), to)
    return to


def test_what_is_wrong_is_said(llm: LLM) -> None:
    with pytest.raises(BadValue, match="pooling must be last or mean, got 'max'"):
        llm.embed("the", pooling="max")  # type: ignore[call-overload]
    with pytest.raises(PromptTooLong, match="600 tokens"):
        llm.embed([1] * 600)
    with pytest.raises(BadValue, match="at least one token"):
        llm.embed("")
    assert np.isfinite(llm.embed([1] * llm.context)).all()
