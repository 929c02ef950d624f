"""Where pictures stand in prompts: as transformers' processor puts them (test_formats.py has Meta's code)."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from text.vocabularies import CONTROL, smollm2

from puna.core import BadInput
from puna.text.chat import encode_chat
from puna.text.formats import build_prompt, image_positions
from puna.text.formats.images import expand_images, image_ids
from puna.text.tokenizer import Tokenizer

LLAMA4 = [
    "<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>", "<|image_start|>",
    "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>", "<|patch|>",
]  # fmt: skip
VISION = [
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|image|>",
]  # fmt: skip
TEMPLATE = """\
{{- bos_token }}{% for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{ '<|image|>' }}{% elif part.type == 'text' %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}{{ '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
GRIDS = [(1, 1), (2, 1), (1, 2), (3, 4), (16, 1), (1, 16), (4, 4)]  # across, down


@cache
def tokenizer(names: tuple[str, ...], template: str | None = None) -> Tokenizer:
    first = len(smollm2()["tokenizer.ggml.tokens"])
    return Tokenizer.from_gguf(
        smollm2("llama-bpe", dict.fromkeys(names, CONTROL), chat_template=template, bos_token_id=first)
    )


def llama4_processor() -> Any:
    return pytest.importorskip("transformers.models.llama4.processing_llama4")


def image(across: int = 1, down: int = 1) -> dict[str, Any]:
    return {"type": "image", "tiles": (across, down)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("patches", [1, 4, 144])
def test_pictures_of_llama_4_are_those_of_transformers(grid: tuple[int, int], patches: int) -> None:
    across, down = grid
    words = llama4_processor().Llama4Processor._prompt_split_image(None, (down, across), patches)
    ours = tokenizer(tuple(LLAMA4))
    assert image_ids(ours, across, down, patches=patches) == ours.encode(words, special=True)


@pytest.mark.parametrize("name", ["built", "transformers' template"])
def test_prompts_of_llama_4(name: str) -> None:
    """The processor's own template, its <|image|> replaced as the processor replaces it."""
    processing = llama4_processor()
    template = None if name == "built" else processing.chat_template
    ours = tokenizer(tuple(LLAMA4), template)
    grids = [(1, 1), (2, 3), (3, 1)]
    said = [image(*grids[0]), text("Two "), image(*grids[1]), text("more <|image|><|patch|>")]
    messages = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [image(*grids[2])]},
    ]
    ids = encode_chat(ours, messages, patches=4)
    marks = [processing.Llama4Processor._prompt_split_image(None, (y, x), 4) for x, y in grids]

    def header(role: str) -> str:
        return f"<|header_start|>{role}<|header_end|>\n\n"

    before = f"<|begin_of_text|>{header('user')}{marks[0]}Two {marks[1]}"
    after = f"<|eot|>{header('assistant')}Yes.<|eot|>{header('user')}{marks[2]}<|eot|>{header('assistant')}"
    expected = ours.encode(before, special=True, bos=False)
    expected += ours.encode("more <|image|><|patch|>", bos=False) + ours.encode(
        after, special=True, bos=False
    )
    assert ours.decode(ids) == ours.decode(expected)
    control = [i for i in ids if i in ours.special_ids]
    assert control == [i for i in expected if i in ours.special_ids]


def test_positions_of_patches() -> None:
    ours = tokenizer(tuple(LLAMA4))
    messages = [{"role": "user", "content": [image(2, 1), text("and <|patch|>"), image()]}]
    ids = build_prompt(ours, messages, chat_format="llama4", patches=4)
    first, second = image_positions(ours, ids)
    patch = ours.id("<|patch|>")
    assert [i for i, token in enumerate(ids) if token == patch] == first + second
    assert (len(first), len(second)) == (12, 4)  # two tiles and the thumbnail; one tile
    start = ids.index(ours.id("<|image_start|>"))
    assert first == [start + i for i in (1, 2, 3, 4, 6, 7, 8, 9, 12, 13, 14, 15)]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_prompts_of_llama_32(template: str | None) -> None:
    ours = tokenizer(tuple(VISION), template)
    said = [image(2, 2), text("What is <|image|>?")]
    messages = [{"role": "user", "content": said}, {"role": "user", "content": [text("And "), image()]}]
    ids = encode_chat(ours, messages)
    mark, end = ours.id("<|image|>"), ours.id("<|end_header_id|>")
    positions = image_positions(ours, ids)
    assert positions == [[i] for i, token in enumerate(ids) if token == mark]
    assert len(positions) == 2
    blank = ours.encode("\n\n", bos=False)
    assert ids[ids.index(end) + 1 : ids.index(mark) + 1] == [*blank, mark]
    assert "What is <|image|>?" in ours.decode(ids)


def test_a_template_gets_plain_parts() -> None:
    """Whatever else a part carries is not the template's business, and "tiles" are checked."""
    ours = tokenizer(tuple(VISION), TEMPLATE)
    part = {"type": "image_url", "image_url": {"url": b"no plain data"}, "image": object()}
    plain = encode_chat(ours, [{"role": "user", "content": [{"type": "image"}]}])
    assert encode_chat(ours, [{"role": "user", "content": [part]}]) == plain
    with pytest.raises(BadInput, match="message 0: tiles must be"):
        encode_chat(ours, [{"role": "user", "content": [{"type": "image", "tiles": 3}]}])


def test_a_template_without_a_place_for_pictures() -> None:
    messages = [{"role": "user", "content": [image(), text("Hi")]}]
    silent = tokenizer(tuple(VISION), "{{ bos_token }}{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(BadInput, match="a place for each of the 1 images of the messages, it has 0; put"):
        encode_chat(silent, messages)
    text_only = tokenizer(("<|begin_of_text|>",), "{{ bos_token }}")
    with pytest.raises(BadInput, match="it has 0; put images into messages of the user"):
        encode_chat(text_only, messages)
    assert image_positions(text_only, [1, 2, 3]) == []


def test_expanding_nothing_changes_nothing() -> None:
    for names in (LLAMA4, VISION):
        assert expand_images(tokenizer(tuple(names)), [5, 6], []) == [5, 6]
