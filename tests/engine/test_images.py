"""Requests with images: what is refused, and that equal tokens with other images never share a block."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from engine import slow_engine
from numpy.typing import NDArray

from puna.core import BadValue, Batch, Image, PlacedImage, Request, SamplingParams
from puna.engine.completion import completion
from puna.engine.config import EngineConfig
from puna.engine.engine import Engine
from puna.engine.mock import MockExecutor
from puna.engine.prefix import marks

VOCAB = 16
GREEDY = SamplingParams(temperature=0, max_tokens=6)
MODEL = MockExecutor(VOCAB)


def image(name: str, n_positions: int = 1) -> Image:
    return Image(np.zeros((n_positions, 3, 1, 1), np.float32), n_positions, 1, name.encode())


def placed(name: str, *positions: int) -> PlacedImage:
    return PlacedImage(image(name, len(positions)), positions)


def answers(engine: Engine, requests: list[Request]) -> dict[int, list[int]]:
    results = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.is_busy:
        for result in engine.step():
            results[result.request_id].append(result)
    return {r.id: list(completion(r, results[r.id]).token_ids) for r in requests}


def test_marks_say_which_part_of_an_image_lies_where() -> None:
    images = [placed("a", 1, 2, 3), PlacedImage(image("b", 4), range(6, 10))]
    assert marks(images, 0, 2) == ((b"a", 0, (1,)),)
    assert marks(images, 2, 8) == ((b"a", 1, (0, 1)), (b"b", 0, (4, 5)))
    assert marks(images, 4, 6) == ()
    assert marks(images, 8, 99) == ((b"b", 2, (0, 1)),)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([placed("a", 4)], r"rise and lie within the prompt of 4 tokens, got 4 after -1"),
        ([placed("a", 2, 1)], r"got 1 after 2"),
        ([placed("a", 1), placed("b", 1)], r"got 1 after 1"),
        ([PlacedImage(image("a", 2), [1])], r"takes 2 positions of the prompt, got 1"),
        ([PlacedImage(image("a"), [1.5])], r"must be whole numbers, got 1.5"),
    ],
)
def test_misplaced_images_are_refused(images: list[PlacedImage], said: str) -> None:
    with pytest.raises(BadValue, match=said):
        Engine(MockExecutor(VOCAB)).submit(Request([1, 2, 3, 4], GREEDY, images=images))


def test_ids_of_images_may_be_read_and_not_be_wanted() -> None:
    model = MockExecutor(VOCAB)
    model.n_token_ids = VOCAB + 8
    engine = Engine(model)
    params = SamplingParams(temperature=0, max_tokens=3, repetition_penalty=1.5)
    request = Request([1, VOCAB, 2], params, images=[placed("a", 1)], prompt_logprobs=True)
    engine.submit(request)
    results = [result for _ in iter(lambda: engine.is_busy, False) for result in engine.step()]
    done = completion(request, results)
    assert done.prompt_logprobs is not None
    assert [p.logprob == -np.inf for p in done.prompt_logprobs] == [True, False]
    with pytest.raises(BadValue, match=r"prompt must be token ids from 0 to 23"):
        engine.submit(Request([VOCAB + 8], params))
    with pytest.raises(BadValue, match=r"stop_ids must be token ids from 0 to 15"):
        engine.submit(Request([1], SamplingParams(stop_ids=(VOCAB,))))


def test_equal_images_share_and_others_do_not() -> None:
    engine = Engine(MockExecutor(VOCAB, block_size=2))
    cached = []
    for name in ("a", "b", "a", "a"):
        request = Request([1, 2, 3, 4, 5, 6, 7], GREEDY, images=[placed(name, 2)])
        engine.submit(request)
        results = [result for _ in iter(lambda: engine.is_busy, False) for result in engine.step()]
        cached.append(completion(request, results).n_cached)
    assert cached == [0, 2, 6, 6]  # the block before the image is the same for both


class Watched(MockExecutor):
    """Notes the images of each step, by their digests."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[set[bytes]] = []

    def step(self, batch: Batch) -> NDArray[np.float32]:
        self.seen.append({placed.image.digest for chunk in batch.chunks for placed in chunk.images})
        return super().step(batch)


def test_nobody_learns_what_pictures_others_have_shown() -> None:
    """Executors keep what they encode by digest, so whoever shows a picture again is answered sooner."""
    shown: dict[str, bytes] = {}
    model = Watched(VOCAB)
    engine = Engine(model)
    found = []
    for salt in ("", "ann", "bob", "ann", ""):
        model.seen.clear()
        request = Request([1, 2, 3], GREEDY, images=[placed("a", 1)], cache_salt=salt)
        found.append(answers(engine, [request])[request.id])
        ((digest,),) = {frozenset(step) for step in model.seen}
        assert shown.setdefault(salt, digest) == digest
        assert request.images[0].image.digest == b"a"
    assert len(set(shown.values())) == 3
    assert shown[""] == b"a"


def draw(rng: Random) -> Request:
    """A few prompts of equal tokens, with images of two names at a few places."""
    prompt = [7] * rng.choice([3, 6, 9, 12])
    images, position = [], 0
    while rng.random() < 0.7:
        position += rng.choice([0, 1, 3])
        n = rng.choice([1, 1, 2, 3])
        if position + n > len(prompt):
            break
        images.append(placed(rng.choice("ab"), *range(position, position + n)))
        position += n
    return Request(prompt, GREEDY, images=images)


def test_every_request_gets_the_answer_that_it_gets_alone() -> None:
    for seed in range(400):
        rng = Random(seed)
        model = MockExecutor(VOCAB, 24, rng.choice([12, 30, 60]), rng.choice([1, 2, 3, 4]))
        engine = Engine(model, EngineConfig(rng.choice([4, 9, 40]), rng.randint(1, 4), 10**6, 2))
        for _ in range(2):  # the second time from the prefix cache
            requests = [r for r in (draw(rng) for _ in range(4)) if len(r.prompt) + 6 <= engine.capacity]
            for request in requests:
                alone = slow_engine.answer(MODEL, request, engine.capacity).tokens
                assert answers(engine, [request])[request.id] == alone, seed
            fresh = [Request(r.prompt, GREEDY, images=r.images) for r in requests]
            together = answers(engine, fresh)
            for request in fresh:
                assert together[request.id] == slow_engine.answer(MODEL, request, engine.capacity).tokens, (
                    seed
                )


def test_running_sequences_look_at_so_many_images_together() -> None:
    """Equal ones count once; one request with more than that runs alone; text does not wait for images."""
    model = Watched(VOCAB, max_images=2)
    names = ["a", "a", "b", "c", "def"]
    requests = [
        Request([1, 2, 3], GREEDY, images=[placed(name, i) for i, name in enumerate(each)]) for each in names
    ]
    text = Request([5, 6], GREEDY)
    found = answers(Engine(model, EngineConfig()), [requests[0], text, *requests[1:]])
    seen = model.seen
    assert {b"a", b"b"} in seen
    assert {b"d", b"e", b"f"} in seen
    assert all(len(names) <= 2 or names == {b"d", b"e", b"f"} for names in seen)
    for request in (*requests, text):
        alone = Request(request.prompt, GREEDY, images=request.images)
        assert answers(Engine(MockExecutor(VOCAB), EngineConfig()), [alone])[alone.id] == found[request.id]
