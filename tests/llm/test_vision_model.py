"""From pictures to answers: whole tiny random models, against transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm.tiny_vision import TEMPLATE, picture, png

from puna import LLM
from puna.core import PlacedImage
from puna.images import prepare
from puna.text.files import hf_files
from puna.weights.convert import convert
from puna.weights.load import Checkpoint
from puna.weights.targets import Texts, plan

pytest.importorskip("torch")
pytest.importorskip("transformers")
from runtime.tiny_vision import IMAGE_TOKEN, PATCH_TOKEN, VOCAB, model, oracle, stored

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = {"<|image_start|>": 84, "<|image_end|>": 85, "<|tile_x_separator|>": 86, "<|tile_y_separator|>": 87,
         "<|image|>": 88, "<|patch|>": PATCH_TOKEN}  # fmt: skip
NORMAL, CONTROLLING = 1, 3


def tokenizer_files(name: str) -> dict[str, bytes]:
    """A vocabulary of single letters, with the tokens of images where the models have them."""
    letters = [chr(33 + i) for i in range(VOCAB - len(CONTROL))]
    tokens = [*CONTROL, *letters]
    types = [CONTROLLING] * len(CONTROL) + [NORMAL] * len(letters)
    marks = {"<|image|>": IMAGE_TOKEN} if name == "mllama" else MARKS
    for token, i in marks.items():
        tokens[i : i + 1], types[i : i + 1] = [token], [CONTROLLING]
    metadata: dict[str, Any] = {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": types, "merges": [],
        "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False,
    }  # fmt: skip
    full = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return hf_files({**full, "tokenizer.chat_template": TEMPLATE}, 256)


@pytest.fixture(params=["torch", "native"])
def load(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], LLM]:
    """An LLM over the model's folder in Hugging Face's layout, as our writer makes it."""

    def loaded(name: str) -> LLM:
        folder = tmp_path / name
        checkpoint = Checkpoint(model(name).config, {}, stored(model(name).tensors))
        convert(plan(checkpoint, "hf", Texts({}, tokenizer_files(name), {}), name=name), folder)
        return LLM(folder, backend=request.param, device="cpu", threads=1, cache_type="f32")

    return loaded


def greedy(name: str, prompt: Sequence[int], images: Sequence[PlacedImage], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(np.argmax(oracle(name, ids, images)[-1])))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["mllama", "llama4"])
def test_a_chat_about_pictures(name: str, load: Callable[[str], LLM], tmp_path: Path) -> None:
    """Twice about two pictures, then another turn on the same beginning, which is in the cache."""
    file = tmp_path / "picture.png"
    file.write_bytes(png(picture(40, 12)))
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 5, "ignore_end": True}
    with load(name) as llm:
        vision = llm.config.vision
        assert vision is not None
        content = [
            {"type": "image", "image": file},
            {"type": "text", "text": "and"},
            {"type": "image", "image": picture(16, 16)},
            {"type": "text", "text": "What?"},
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        answer = llm.stream(messages, **options)
        request, result = answer.request, answer.result()
        digests = [prepare(source, vision).digest for source in (file, picture(16, 16))]
        assert [placed.image.digest for placed in request.images] == digests
        assert list(result.token_ids) == greedy(name, request.prompt, request.images, 5)
        other = llm.chat(
            [{"role": "user", "content": [{"type": "image", "image": picture(16, 40)}, *content[1:]]}],
            logprobs=0,
            **options,
        )
        same = llm.chat(messages, logprobs=0, **options)
        assert same.token_ids == result.token_ids
        assert same.logprobs != other.logprobs
        messages += [{"role": "assistant", "content": "ab"}, {"role": "user", "content": "Why?" * 10}]
        again = llm.stream(messages, **options)
        assert list(again.result().token_ids) == greedy(name, again.request.prompt, again.request.images, 5)
