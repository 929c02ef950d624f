"""Messages with pictures become requests: the right pixels at the right positions, or a sentence.

The model is a tiny text model that is told it has an image encoder: what it answers does not depend on the
pictures, what it is asked does.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm.tiny_llm import until_idle, write_tiny_llm
from llm.tiny_vision import LLAMA4, LLAMA32, TEMPLATE, TOKENS, let_see, picture, png

from puna import LLM
from puna.core import BadFile, BadInput, Completion, Image, PromptTooLong, Request
from puna.images import prepare
from puna.runtime.images import MAX_SEEN


@pytest.fixture(scope="module")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("models") / "llama4.gguf"
    write_tiny_llm(path, template=TEMPLATE, control=TOKENS["llama4"])
    with LLM(path, threads=1) as llm:
        let_see(llm, LLAMA4)
        yield llm


@pytest.fixture
def llama32(tmp_path: Path) -> Iterator[LLM]:
    path = write_tiny_llm(tmp_path / "llama32.gguf", template=TEMPLATE, control=TOKENS["llama3.2"])
    with LLM(path, threads=1) as llm:
        let_see(llm, LLAMA32, cross_attention=(0,))
        yield llm


def asked(llm: LLM, *parts: Any) -> Request:
    messages = [{"role": "user", "content": [*parts]}]
    with llm.stream(messages, max_tokens=1) as answer:
        return answer.request


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def image(source: Any) -> dict[str, Any]:
    return {"type": "image", "image": source}


def test_every_way_to_give_a_picture(llama4: LLM, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(png())
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    expected = prepare(png(), LLAMA4)
    ways = [image(s) for s in (png(), str(file), file, picture(), expected, llama4.image(file))]
    for part in [*ways, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]:
        request = asked(llama4, part, text("What is this?"))
        (placed,) = request.images
        assert placed.image.digest == expected.digest
        assert np.array_equal(placed.image.pixels, expected.pixels)


def test_patches_take_the_places_of_pictures(llama4: LLM) -> None:
    small, large = picture(20, 30), picture()
    request = asked(llama4, text("<|patch|>"), image(small), text("and"), image(large))
    patch = llama4.tokenizer.id("<|patch|>")
    assert [placed.image.digest for placed in request.images] == [
        prepare(drawn, LLAMA4).digest for drawn in (small, large)
    ]
    first, second = (list(placed.positions) for placed in request.images)
    assert [i for i, token in enumerate(request.prompt) if token == patch] == first + second
    assert (len(first), len(second)) == (4, 4 * 3)
    assert len(request.images[1].image.pixels) == 3
    said = llama4.tokenizer.decode(request.prompt)
    tile = "<|patch|>" * 4
    assert said == (
        f"<|im_start|>user:<|patch|><|image_start|><|image|>{tile}<|image_end|>and<|image_start|>{tile}"
        f"<|tile_x_separator|>{tile}<|tile_y_separator|><|image|>{tile}<|image_end|><|im_end|>"
    )


def test_the_mark_of_llama_32(llama32: LLM) -> None:
    request = asked(llama32, image(picture()), text("What is <|image|>?"))
    mark = llama32.tokenizer.id("<|image|>")
    (placed,) = request.images
    assert placed.positions == [request.prompt.index(mark)]
    assert placed.image.pixels.shape == (placed.image.rows * placed.image.columns, 3, 28, 28)
    # Meta's and Hugging Face's models read the row behind the vocabulary, whatever the tokenizer calls it
    llama32.config = replace(llama32.config, n_image_embeddings=8)
    messages = [{"role": "user", "content": [image(png())]}]
    request = llama32.chat_request(messages, llama32._params(None, {}))
    assert request.prompt[request.images[0].positions[0]] == llama32.config.vocab_size
    assert mark not in request.prompt


def test_chats_with_pictures_are_answered(llama4: LLM) -> None:
    """All ways to ask agree; what a prompt says of its tiles is what the text model sees."""
    messages = [
        {"role": "user", "content": [image(png()), text("Hm?")]},
        {"role": "assistant", "content": "A gradient."},
        {"role": "user", "content": "Of what?"},
    ]
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    answer = llama4.chat(messages, **options)
    assert llama4.stream(messages, **options).result().token_ids == answer.token_ids
    assert asyncio.run(llama4.achat(messages, **options)).token_ids == answer.token_ids

    async def streamed() -> tuple[int, ...]:
        return (await llama4.astream(messages, **options).result()).token_ids

    assert asyncio.run(streamed()) == answer.token_ids


def test_an_answer_about_pictures_can_be_given_up_before_it_begins(llama4: LLM) -> None:
    messages = [{"role": "user", "content": [image(png(picture(2000, 2000))), text("Hm?")]}]

    async def closed() -> Completion:
        answer = llama4.astream(messages)
        assert answer.timing.n_tokens == 0
        answer.close()
        assert [piece async for piece in answer] == []
        return await answer.result()

    result = asyncio.run(closed())
    assert (result.finish_reason, result.text, result.n_prompt) == ("cancelled", "", 0)

    async def cancelled() -> None:
        task = asyncio.create_task(llama4.achat(messages, ignore_end=True))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    until_idle(llama4)


def test_an_answer_can_be_given_up_once_its_pictures_are_prepared(llama4: LLM) -> None:
    messages = [{"role": "user", "content": [image(png()), text("Hm?")]}]

    async def ask() -> str:
        answer = llama4.astream(messages, max_tokens=150, ignore_end=True)
        while not answer._starting.done():  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
        answer.close()
        return (await answer.result()).finish_reason

    assert asyncio.run(ask()) == "cancelled"

    async def leave() -> None:
        async with llama4.astream(messages, ignore_end=True) as answer:
            await asyncio.wait([answer._starting])  # type: ignore[list-item]

    asyncio.run(leave())
    until_idle(llama4)


def test_a_loop_goes_on_while_pictures_are_prepared(llama4: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop runs between the call of astream() and its first piece, whatever the pictures take."""
    may_prepare = threading.Event()
    prepare_request = llama4.chat_request

    def wait_and_prepare(*args: Any, **options: Any) -> Request:
        assert may_prepare.wait(30)
        return prepare_request(*args, **options)

    monkeypatch.setattr(llama4, "chat_request", wait_and_prepare)

    async def ask() -> str:
        answer = llama4.astream([{"role": "user", "content": [image(png()), text("Hm?")]}], max_tokens=3)
        await asyncio.sleep(0)  # would not be reached if astream() prepared them itself
        may_prepare.set()
        return (await answer.result()).finish_reason

    assert asyncio.run(ask()) == "length"


def test_a_text_model_sees_nothing(llm: LLM) -> None:
    with pytest.raises(
        BadInput, match="message 0: tiny is a text model and sees no images, it was given one"
    ):
        llm.chat([{"role": "user", "content": [image(png()), text("Hm?")]}])
    with pytest.raises(BadInput, match=r"use a vision model .Llama 3.2 Vision, Llama 4."):
        llm.image(png())
    with pytest.raises(BadInput, match="a text model"):
        asyncio.run(llm.achat([{"role": "user", "content": [image(png())]}]))


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"type": "image"}, "message 0: an image must be given as .* it has none"),
        (image(b"GIF"), "message 0: the image must be a JPEG, PNG, WebP or GIF file"),
        (image("https://example.org/a.png"), "message 0: .* addresses are not opened"),
        (image("nothing.png"), "message 0: 'nothing.png' cannot be read as an image: No such file"),
        ({"type": "image_url"}, "message 0: an image_url must be"),
        ({"type": "image_url", "image_url": {"url": 5}}, "message 0: an image_url must be"),
        ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "must be a data URL"),
        ({"type": "image_url", "image_url": {"url": "http://localhost/a"}}, "must be a data URL"),
        (image(Image(np.zeros((1, 3, 5, 5), np.float32), 1, 1, b"")), "prepare it for this model"),
        (image(Image(np.zeros((1, 3, 56, 56), np.float32), 1, 1, [1])), "digest of an image must be bytes"),  # type: ignore[arg-type]
        (image(Image(np.full((1, 3, 56, 56), np.nan, np.float32), 1, 1, b"")), "pixels .* must be numbers"),
        ({"type": "text", "text": 5}, "message 0: a part must be .* with a text"),
    ],
)
def test_parts_that_are_no_pictures(llama4: LLM, part: Any, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        asked(llama4, part)
    with pytest.raises(BadInput, match=sentence):
        asyncio.run(llama4.achat([{"role": "user", "content": [part]}]))


def test_a_damaged_file_is_one_in_messages_too(llama4: LLM) -> None:
    with pytest.raises(BadFile, match="message 0: the image is a damaged or cut PNG image"):
        asked(llama4, image(png()[:-40]))


def test_images_count_in_the_context(llama4: LLM) -> None:
    parts = [image(picture(1000, 1000))] * 8
    with pytest.raises(PromptTooLong, match=r"holds 512; 544 of the tokens are images"):
        asked(llama4, *parts)
    with pytest.raises(PromptTooLong, match="544 of the tokens are images"):
        asyncio.run(llama4.achat([{"role": "user", "content": parts}]))
    with pytest.raises(PromptTooLong) as caught:
        llama4.chat([{"role": "user", "content": [text("x" * 600)]}])
    assert "images" not in str(caught.value)


def test_too_many_images(llama32: LLM) -> None:
    parts = [image(png())] * MAX_SEEN
    assert len(asked(llama32, *parts).images) == MAX_SEEN
    with pytest.raises(BadInput, match="llama32 must have at most 8 images together, found 9; take some out"):
        asked(llama32, *parts, image(png()))


def test_a_tokenizer_of_another_generation(llama4: LLM, llama32: LLM) -> None:
    llama32.config = replace(llama32.config, vision=LLAMA4, cross_attention=())
    with pytest.raises(BadFile, match="the tokenizer has others; bring the tokenizer of this model"):
        asked(llama32, image(png()))
