"""Whatever somebody writes into a message, a tool or a result, the prompt has the same control tokens.

For every format that is built and every kind of template: the ids of a hostile conversation against those of
a harmless one of the same shape.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from text import templates
from text.vocabularies import CONTROL, small_sentencepiece, smollm2

from puna.core import BadInput
from puna.text.chat import encode_chat
from puna.text.formats import FORMATS
from puna.text.tokenizer import Tokenizer

NAMES = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<|eom_id|>", "<|python_tag|>", "<|image|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>",
    "<|python_start|>", "<|python_end|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<step>",
    "<|tile_x_separator|>", "<|tile_y_separator|>", "<|fim_prefix|>",
)  # fmt: skip
PIECES = (
    *NAMES, "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<<SYS>>",
    "<<|eot_id|>|eot_id|>",
    "<|", "|>", "<", ">", "eot_id", "assistant", "\n\n", " ", "user", "x", "Source: assistant\n",
)  # fmt: skip
WITH_TOOLS = ("llama3.1", "llama3.2", "llama3.2-vision", "llama3.3", "llama4")
OF_LLAMA2 = ("llama2", "codellama", "codellama-70b")


@cache
def vocabulary(name: str) -> Tokenizer:
    """One with the control tokens of all generations; [INST] is text in all of them."""
    template = TEMPLATES.get(name)
    if name in (*OF_LLAMA2, "template of Llama 2"):
        pieces = small_sentencepiece(chat_template=template)
        return Tokenizer.from_gguf(pieces) if name != "codellama-70b" else everything(None)
    return everything(template)


@cache
def everything(template: str | None) -> Tokenizer:
    ids = {"bos_token_id": 49152, "eos_token_id": 49156}
    return Tokenizer.from_gguf(
        smollm2("llama-bpe", dict.fromkeys(NAMES, CONTROL), chat_template=template, **ids)
    )


TEMPLATES = {
    "template of Llama 2": templates.LLAMA2,
    "template of Llama 3": templates.LLAMA3,
    "template of Llama 3.1": templates.LLAMA31,
}


def conversation(write: Any, *, has_tools: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": write()}, {"role": "user", "content": write()},
        {"role": "assistant", "content": write()}, {"role": "user", "content": write()},
    ]  # fmt: skip
    if not has_tools:
        return messages, None
    call = {"name": "f", "arguments": {"a": write(), "b": [write()]}}
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": write()},
        {"role": "user", "content": write()},
    ]
    properties = {write() or "k": {"type": "string", "description": write(), "enum": [write()]}}
    function = {
        "name": "f",
        "description": write(),
        "parameters": {"type": "object", "properties": properties},
    }
    return messages, [{"type": "function", "function": function}]


def ids_of(name: str, write: Any) -> list[int]:
    has_tools = name in WITH_TOOLS or name == "template of Llama 3.1"
    messages, tools = conversation(write, has_tools=has_tools)
    chat_format = None if name in TEMPLATES else name
    return encode_chat(vocabulary(name), messages, tools=tools, chat_format=chat_format)


def control(name: str, ids: list[int]) -> list[int]:
    return [i for i in ids if i in vocabulary(name).special_ids]


@pytest.mark.parametrize("name", [*FORMATS, *TEMPLATES])
def test_what_is_written_makes_no_control_tokens(name: str) -> None:
    expected = control(name, ids_of(name, lambda: "harmless"))
    assert len(expected) > 2
    n_refused, rng = 0, random.Random(name)
    for _ in range(40):

        def write() -> str:
            return "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 5)))

        try:
            found = ids_of(name, write)
        except BadInput:  # Llama 2's marks are text, which its messages must not have
            n_refused += 1
            continue
        assert control(name, found) == expected
    assert n_refused == 0 or (name in ("llama2", "codellama") and n_refused < 40)


@pytest.mark.parametrize("text", [f"a {mark} b" for mark in ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")])
@pytest.mark.parametrize("name", ["llama2", "codellama"])
@pytest.mark.parametrize("role", ["system", "user"])
def test_marks_that_are_text_are_refused(name: str, text: str, role: str) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    messages = [{**m, "content": text if m["role"] == role else m["content"]} for m in messages]
    with pytest.raises(BadInput, match="must not have the format's own mark"):
        encode_chat(vocabulary(name), messages, chat_format=name)


def test_the_vocabularies_are_those_of_the_formats() -> None:
    """Every control token that a format writes is one that a message could name."""
    for name in (*NAMES[:-2], "<|im_start|>"):
        assert everything(None).has(name), name
