"""Images on every executor, against transformers: both encoders, cross-attention and early fusion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from runtime.tiny_vision import (
    CASES,
    VisionModel,
    executor,
    log_softmax,
    model,
    oracle,
    picture,
    prompt,
    run,
)

from puna.core import BadValue, Batch, Chunk, Image, Request, SamplingParams
from puna.engine.completion import completion
from puna.engine.config import EngineConfig
from puna.engine.engine import Engine
from puna.runtime.images import Encoded, ImageStore

LOGPROB = 1e-4  # absolute, natural

cases = pytest.mark.parametrize("case", CASES)
kinds = pytest.mark.parametrize("kind", ["numpy", "torch", "native"])


@kinds
@cases
def test_equals_transformers(case: str, kind: str) -> None:
    name, parts = CASES[case]
    ids, placed = prompt(name, parts)
    expected = oracle(name, ids, placed)
    got = run(executor(kind, model(name)), ids, placed, [len(ids)])
    np.testing.assert_allclose(got, expected, rtol=0, atol=LOGPROB)


CUTS = {
    "decode": lambda n: [1] * n,
    "thirds": lambda n: [n // 3] * 3 + [n - n // 3 * 3] * (n % 3 > 0),
    "prefill-decode": lambda n: [n - 3, 1, 1, 1],
}


@kinds
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("case", ["mllama-neighbours", "llama4-two-images"])
def test_chunks_equal_the_full_pass(case: str, cuts: str, kind: str) -> None:
    """Chunks cut the positions of images anywhere."""
    name, parts = CASES[case]
    ids, placed = prompt(name, parts)
    full = run(executor(kind, model(name)), ids, placed, [len(ids)])
    got = run(executor(kind, model(name)), ids, placed, CUTS[cuts](len(ids)))
    np.testing.assert_allclose(got, full, rtol=0, atol=1e-5)


@kinds
@pytest.mark.parametrize("case", ["mllama-two-images", "llama4-5-tiles"])
def test_greedy_tokens_of_the_engine_are_those_of_transformers(case: str, kind: str) -> None:
    """With a full pass of the oracle for each token. Twice, the second time from the prefix cache."""
    name, parts = CASES[case]
    ids, placed = prompt(name, parts)
    expected = list(ids)
    for _ in range(8):
        expected.append(int(oracle(name, expected, placed)[-1].argmax()))
    engine = Engine(executor(kind, model(name)), EngineConfig(max_step_tokens=8))
    for _ in range(2):
        request = Request(ids, SamplingParams(temperature=0, max_tokens=8), images=placed)
        engine.submit(request)
        results = []
        while engine.is_busy:
            results += engine.step()
        assert list(completion(request, results).token_ids) == expected[len(ids) :]
    engine.close()


@kinds
@pytest.mark.parametrize("name", ["mllama", "llama4"])
def test_a_mixed_batch(name: str, kind: str) -> None:
    """Text, an image before the chunk, one in it, and one that only begins in it."""
    ex, rows, chunks = executor(kind, model(name)), [], []
    prompts = [
        prompt(name, parts, seed)
        for seed, parts in enumerate(
            [[9], [picture(1, 1), 9], [5, picture(1, 2, thumbnail=name == "llama4"), 3]]
        )
    ]
    tables = [[i * 3, i * 3 + 1, i * 3 + 2] for i in range(3)]
    ids, placed = prompts[1]
    ex.step(Batch([Chunk(ids[:7], 0, tables[1], 0, placed)]))
    for (ids, placed), table, (start, end) in zip(prompts, tables, [(0, 9), (7, 9), (0, 8)], strict=True):
        chunks.append(Chunk(ids[start:end], start, table, end - start, placed))
        rows.append(oracle(name, ids, placed)[start:end])
    got = log_softmax(ex.step(Batch(chunks)))
    np.testing.assert_allclose(got, np.concatenate(rows), rtol=0, atol=LOGPROB)


def test_without_images_it_is_the_text_model() -> None:
    """Llama 3.2 Vision holds all of Llama 3.1, whose executor knows nothing of images."""
    m = model("mllama")
    text = VisionModel(
        None, replace(m.config, cross_attention=(), n_image_embeddings=0, vision=None), m.tensors
    )
    ids, _ = prompt("mllama", [20])
    for kind in ("numpy", "torch", "native"):
        got, expected = (run(executor(kind, each), ids, [], [12, 8]) for each in (m, text))
        np.testing.assert_array_equal(got, expected)


@kinds
def test_the_image_matters_and_the_order_of_its_tiles(kind: str) -> None:
    for name, thumbnail in (("mllama", False), ("llama4", True)):
        first = picture(1, 2, thumbnail=thumbnail)
        swapped = replace(first, pixels=first.pixels[[1, 0, *range(2, len(first.pixels))]], digest=b"swapped")
        upright = replace(first, rows=2, columns=1, digest=b"upright")
        logprobs = [
            run(executor(kind, model(name)), ids, placed, [len(ids)])[-1]
            for ids, placed in (prompt(name, [2, image, 3]) for image in (first, swapped, upright))
        ]
        assert np.abs(logprobs[0] - logprobs[1]).max() > 100 * LOGPROB
        # of the grid Llama 4 knows only what separators of the prompt say
        assert (np.abs(logprobs[0] - logprobs[2]).max() > 100 * LOGPROB) == (name == "mllama")


@kinds
def test_images_are_encoded_once_and_the_least_used_forgotten(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[bytes] = []
    plain = ImageStore.encode

    def counted(self: ImageStore, image: Image, *rest: Any) -> Encoded:
        encoded.append(image.digest)
        return plain(self, image, *rest)

    monkeypatch.setattr(ImageStore, "encode", counted)
    a, b, c = (picture(1, 1, seed=seed) for seed in range(3))
    m = model("mllama")
    positions = 32 if kind == "native" else 17  # native: whole tiles
    size = 2 * 2 * positions * 64 * 4  # bytes: keys and values of two layers, positions of 64 floats
    ex = executor(kind, m, image_bytes=2 * size)
    for image in (a, b, a, a, c, a, b):
        ids, placed = prompt("mllama", [1, image, 4])
        run(ex, ids, placed, [3, 1, 1, 1])
    assert encoded == [image.digest for image in (a, b, c, b)]
    ids, placed = prompt("mllama", [1, a, b, c, 4])
    run(ex, ids, placed, [5, 1, 1, 1])
    assert encoded[4:] == [image.digest for image in (c,)]  # more than fits, because all are in use
    assert ex._images.n_bytes == 3 * size
    run(ex, [1, 2, 3], (), [3])
    assert ex._images.n_bytes == 2 * size


def test_a_chunk_behind_the_image_needs_no_encoding() -> None:
    """Early fusion: what an image is, stands in the cache by then."""
    ids, placed = prompt("llama4", [1, picture(1, 1), 5])
    ex = executor("numpy", model("llama4"))
    run(ex, ids[:6], placed, [6])
    ex._images = ImageStore(model("llama4").config, pytest.fail, 0)
    ex.step(Batch([Chunk(ids[6:], 6, [5, 2, 9], 1, placed)]))


@pytest.mark.parametrize(
    ("name", "image", "said"),
    [
        ("mllama", picture(2, 3), r"at most 4 tiles, each 3 x 16 x 16; found a grid of 2 x 3"),
        ("mllama", picture(1, 2, thumbnail=True), r"pixels of shape \(3, 3, 16, 16\)"),
        ("llama4", picture(1, 2), r"beside a thumbnail.* found a grid of 1 x 2 with pixels of shape \(2, 3"),
        ("llama4", picture(5, 4, thumbnail=True), r"at most 16 tiles"),
    ],
)
def test_foreign_images_are_refused(name: str, image: Image, said: str) -> None:
    for kind in ("numpy", "torch", "native"):
        with pytest.raises(BadValue, match=said):
            executor(kind, model(name)).n_image_positions(image)


def test_text_models_see_nothing() -> None:
    m = model("llama4")
    text = VisionModel(None, replace(m.config, vision=None), m.tensors)
    with pytest.raises(BadValue, match=r"sees no images; choose one with vision"):
        executor("numpy", text).n_image_positions(picture(1, 1))


@pytest.mark.parametrize("kind", ["torch", "native"])
@pytest.mark.parametrize("name", ["mllama", "llama4"])
def test_bfloat16_stays_near(name: str, kind: str) -> None:
    ids, placed = prompt(name, [2, picture(1, 1), 6])
    options = {"dtype": "bf16"} if kind == "torch" else {"cache_type": "bf16"}
    got = run(executor(kind, model(name), **options), ids, placed, [len(ids)])
    assert np.abs(got - oracle(name, ids, placed)).mean() < 0.1


@pytest.mark.parametrize("cache_type", ["bf16", "f32", "q8_0"])
@pytest.mark.parametrize("case", ["mllama-neighbours", "llama4-two-images"])
def test_native_bits_depend_on_neither_threads_nor_chunks(case: str, cache_type: str) -> None:
    name, parts = CASES[case]
    ids, placed = prompt(name, parts)
    rows = [
        run(executor("native", model(name), threads=threads, cache_type=cache_type), ids, placed, cuts)
        for threads, cuts in ((1, [len(ids)]), (2, [1] * len(ids)), (3, [len(ids) - 3, 3]))
    ]
    for other in rows[1:]:
        np.testing.assert_array_equal(rows[0], other)
