"""Answers that were begun and go on: prompts as transformers makes them, and by builders."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text.test_chat import HOSTILE, TALKS, by_transformers, control_ids, curious, llama2, llama3, say
from text.test_chat import some_tokenizers as tokenizers
from text.test_formats import llama2 as with_extra
from text.test_formats import small
from text.vocabularies import llama2_tokenizer, smollm2_tokenizer

from puna.core import BadInput
from puna.text.chat import encode_chat
from puna.text.formats import FORMATS, build_prompt
from puna.text.tokenizer import Tokenizer

BEGUN = [talk for talk in TALKS if talk[-1]["role"] == "assistant" and talk[-1]["content"].strip()]
BEGUN += [say("Name a colour.", "The best answer is ("), say("Hi", "7", "more", "12 345", system="Be 7.")]
NAMES = ["smollm2", "2", "3", "3.1", "curious"]


def go_on(tokenizer: Tokenizer, messages: Any, **options: Any) -> list[int]:
    return encode_chat(tokenizer, messages, continue_final_message=True, **options)


@pytest.mark.parametrize("messages", BEGUN, ids=range(len(BEGUN)))
@pytest.mark.parametrize("tokenizer", tokenizers(), ids=NAMES)
def test_ids_are_those_of_transformers(tokenizer: Tokenizer, messages: Any) -> None:
    messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"].strip()}]
    expected = by_transformers(tokenizer, messages, continue_final_message=True)
    assert go_on(tokenizer, messages) == tokenizer.encode(expected, special=True)


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=NAMES)
def test_space_at_the_end_stays(tokenizer: Tokenizer) -> None:
    ids = go_on(tokenizer, say("Hi", "One,\n\n  "))
    assert tokenizer.decode(ids) == tokenizer.decode(go_on(tokenizer, say("Hi", "One,"))) + "\n\n  "


def test_the_last_of_several_parts_goes_on() -> None:
    parts = [{"type": "text", "text": "Red"}, {"type": "text", "text": " and gr"}]
    messages = [*say("Hi"), {"role": "assistant", "content": parts}]
    assert curious().decode(go_on(curious(), messages)).endswith("<|assistant|>Red and gr")


@settings(max_examples=100, deadline=None)
@given(text=HOSTILE.filter(str.strip), tokenizer=st.sampled_from(tokenizers()[:4]))
def test_the_answer_makes_no_control_tokens(text: str, tokenizer: Tokenizer) -> None:
    ids, harmless = go_on(tokenizer, say("Hi", text)), go_on(tokenizer, say("Hi", "x"))
    assert control_ids(tokenizer, ids) == control_ids(tokenizer, harmless)


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("llama3")])
def test_built_as_a_question_and_the_text(name: str) -> None:
    tokenizer = llama3(None) if name == "llama3" else small(name)
    messages = say("Hi", "Red, gr", system="Be brief.")
    built = build_prompt(tokenizer, messages, chat_format=name, continue_final_message=True)
    asked = build_prompt(tokenizer, messages[:-1], chat_format=name)
    assert built == asked + tokenizer.encode("Red, gr", bos=False)


def test_built_as_by_templates() -> None:
    messages = say("Hi", "Hello", "Bye", "Good", system="Be brief.")
    assert go_on(smollm2_tokenizer(), messages, chat_format="chatml") == go_on(smollm2_tokenizer(), messages)
    assert go_on(llama2_tokenizer(), messages, chat_format="llama2") == go_on(llama2(), messages)


def test_code_llama_70b_goes_on() -> None:
    tokenizer = with_extra("<step>")
    ids = build_prompt(tokenizer, say("Q", "A: "), chat_format="codellama-70b", continue_final_message=True)
    asked = build_prompt(tokenizer, say("Q"), chat_format="codellama-70b")
    assert tokenizer.decode(ids).replace("  ", " ") == (tokenizer.decode(asked) + "A: ").replace("  ", " ")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (say("Hi"), "must be the assistant's, found 'user'"),
        ([], "must be the assistant's, found None"),
        (say("Hi", "  "), "must have a text that it begins with, found '  '"),
        ([*say("Hi"), {"role": "assistant", "content": [{"type": "image"}]}], "must have a text"),
        (
            [*say("Hi"), {"role": "assistant", "content": "x", "tool_calls": [{"name": "f"}]}],
            "calls tools has ended",
        ),
    ],
)
def test_what_cannot_go_on(messages: Any, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        go_on(smollm2_tokenizer(), messages)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content[:5] }}{% endfor %}",  # cuts the text
        "{% for m in messages %}{{ m.content }}{{ m.content | length }}{% endfor %}",  # counts it
        "{{ messages[0].content }}",  # does not show it
    ],
)
def test_templates_that_change_the_text_are_refused(template: str) -> None:
    with pytest.raises(BadInput, match="does not write the last message as it is"):
        go_on(llama3(template), say("Hi there", "Hello you"))


def test_a_template_that_looks_into_texts_is_followed() -> None:
    """Of an answer with thinking it shows what comes after."""
    messages = say("Hi", "<think>\nhm\n</think>\n\nNoon is")
    assert go_on(curious(), messages) == go_on(curious(), say("Hi", "Noon is"))
