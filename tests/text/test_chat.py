"""Prompts: what transformers makes of the same templates, and no control tokens out of messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text import templates
from text.vocabularies import (
    CONTROL,
    llama2_tokenizer,
    small_sentencepiece,
    smollm2,
    smollm2_data,
    smollm2_tokenizer,
)

from puna.core import BadFile, BadInput
from puna.text.chat import encode_chat, render_chat
from puna.text.formats import build_prompt
from puna.text.template import _renderer
from puna.text.tokenizer import Tokenizer

LLAMA3_NAMES = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
]
CURIOUS_NAMES = ["<|user|>", "<|assistant|>", "<|system|>"]
Messages = Sequence[dict[str, Any]]


@cache
def llama3(template: str | None = templates.LLAMA3, **changes: Any) -> Tokenizer:
    extra = dict.fromkeys(LLAMA3_NAMES, CONTROL)
    ids = {"bos_token_id": 49152, "eos_token_id": 49155}
    return Tokenizer.from_gguf(smollm2("llama-bpe", extra, chat_template=template, **ids, **changes))


@cache
def curious() -> Tokenizer:
    extra = dict.fromkeys(CURIOUS_NAMES, CONTROL)
    return Tokenizer.from_gguf(smollm2(extra=extra, chat_template=templates.CURIOUS))


@cache
def llama2(**changes: Any) -> Tokenizer:
    return Tokenizer.from_gguf(small_sentencepiece(chat_template=templates.LLAMA2, **changes))


def say(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    """Messages of user and assistant in turn."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


TALKS: list[Messages] = [
    say("Hi"),
    say("  How are you?\n", "Fine.  ", "Good!\n\n", system=" Be brief. "),
    say("/time now", "<think>\nhm\n</think>\n\nNoon.", "a </think> b", "x"),
    say("1 < 2 > 0 | [x] <|not a token|> {{ messages }} {% raw %}", "<b>ok</b>", "ñ 中文 🦙\r\n\tend"),
    say("'s", "t", "'ll go", system="don"),
    say("", "", ""),
]


def by_transformers(tokenizer: Tokenizer, messages: Messages, **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    def name(token_id: int | None) -> str:
        return "" if token_id is None else tokenizer.token_bytes(token_id).decode()

    (rendered,), _ = render_jinja_template(
        conversations=[list(messages)],
        chat_template=tokenizer.chat_template,
        bos_token=name(tokenizer.bos_id),
        eos_token=name(tokenizer.eos_id),
        **options,
    )
    return str(rendered)


def some_tokenizers() -> list[Tokenizer]:
    return [smollm2_tokenizer(), llama2(), llama3(), llama3(templates.LLAMA31), curious()]


@pytest.mark.parametrize("messages", TALKS, ids=range(len(TALKS)))
@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("tokenizer", some_tokenizers(), ids=["smollm2", "2", "3", "3.1", "curious"])
def test_rendered_and_encoded_as_by_transformers(
    tokenizer: Tokenizer, add_generation_prompt: bool, messages: Messages
) -> None:
    expected = by_transformers(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    assert render_chat(tokenizer, messages, add_generation_prompt=add_generation_prompt) == expected
    ids = encode_chat(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    # No text here names a control token, so that trusting the string gives the same.
    assert ids == tokenizer.encode(expected, special=True)


def test_ids_are_those_of_apply_chat_template() -> None:
    """All by transformers, from SmolLM2's data to the ids."""
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    data = smollm2_data()
    vocabulary = {token: i for i, token in enumerate(data["tokens"])}
    backend = Reference(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in data["merges"]]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    reference = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=data["special"],
        chat_template=data["chat_template"],
    )
    for messages in TALKS:
        theirs = reference.apply_chat_template(list(messages), add_generation_prompt=True)["input_ids"]
        assert encode_chat(smollm2_tokenizer(), messages) == theirs


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def test_tools_and_their_results() -> None:
    tokenizer = llama3(templates.LLAMA31)
    call = {
        "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Zürich <3", "days": 2}},
    }
    messages: Messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": {"sky": "clear", "wind": None, "warm": True}},
    ]
    expected = by_transformers(tokenizer, messages, tools=[TOOL], add_generation_prompt=True)
    assert render_chat(tokenizer, messages, tools=[TOOL]) == expected
    assert encode_chat(tokenizer, messages, tools=[TOOL]) == tokenizer.encode(expected, special=True)
    assert '"city": "Zürich <3"' in expected


def test_the_date_is_given() -> None:
    tokenizer = llama3(templates.LLAMA31)
    prompt = tokenizer.decode(encode_chat(tokenizer, say("Hi"), date=date(2026, 11, 23)))
    assert "Today Date: 23 Nov 2026\n" in prompt
    prompt = tokenizer.decode(encode_chat(tokenizer, say("Hi"), variables={"date_string": "doomsday"}))
    assert "Today Date: doomsday\n" in prompt


def test_parts_of_a_message() -> None:
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "<|im_end|>you"}]
    ids = encode_chat(curious(), [{"role": "user", "content": parts}])
    assert curious().decode(ids).strip() == "<|user|>Hello <|im_end|>you<|im_end|>\n<|assistant|>"
    assert ids.count(curious().id("<|im_end|>")) == 1


@pytest.mark.parametrize("add_bos_token", [False, True])
def test_bos_comes_once_where_the_template_writes_it(add_bos_token: bool) -> None:
    for tokenizer in (llama2(add_bos_token=add_bos_token), llama3(add_bos_token=add_bos_token)):
        ids = encode_chat(tokenizer, say("Hi"))
        assert ids[0] == tokenizer.bos_id
        assert tokenizer.bos_id not in ids[1:]


def test_the_file_asks_for_bos_and_the_template_does_not_write_it() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    asks, does_not = (llama3(template, add_bos_token=add) for add in (True, False))
    assert encode_chat(asks, say("Hi")) == [49152, *encode_chat(does_not, say("Hi"))]


# What messages may not do.


def control_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [i for i in ids if i in tokenizer.special_ids]


HOSTILE = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|user|>", "</s>", "<s>", "<", "|", ">", "|>", "<|",
         "s", "im_end", "eot_id|>", "user", "!", "/", " ", "\n", "x", "</think>", "<|im_!end|>",
         "<<|im_end|>|im_end|>"]
    ),
    max_size=6,
).map("".join)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(HOSTILE, min_size=1, max_size=3), tokenizer=st.sampled_from(some_tokenizers()[:4]))
def test_messages_make_no_control_tokens(texts: list[str], tokenizer: Tokenizer) -> None:
    ids = encode_chat(tokenizer, say(*texts))
    harmless = encode_chat(tokenizer, say(*("x" for _ in texts)))
    assert control_ids(tokenizer, ids) == control_ids(tokenizer, harmless)
    # A SentencePiece vocabulary has a space after every control token.
    assert tokenizer.decode(ids).replace(" ", "") == render_chat(tokenizer, say(*texts)).replace(" ", "")


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(HOSTILE, min_size=1, max_size=3))
def test_nor_in_a_template_that_looks_into_them(texts: list[str]) -> None:
    messages = say(*texts)
    control = control_ids(curious(), encode_chat(curious(), messages))
    names = [name for message in messages for name in (f"<|{message['role']}|>", "<|im_end|>")]
    # Where it looks for "</think>", what it deletes elsewhere may make a name: beyond help, as chat.py says.
    if not any("</think>" in text for text in texts[1::2]):
        assert control == [curious().id(name) for name in [*names, "<|assistant|>"]]


def test_tools_make_no_control_tokens() -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "<|eot_id|>", "x<|eot_id|>": ["<|eot_id|>"]},
    }
    tokenizer = llama3(templates.LLAMA31)
    ids = encode_chat(tokenizer, say("Hi"), tools=[tool], variables={"date_string": "<|eot_id|>"})
    assert ids.count(tokenizer.id("<|eot_id|>")) == 2
    assert tokenizer.decode(ids).count("<|eot_id|>") == 6


# What is refused.


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([{"role": "user"}], "has no attribute 'content'"),
        ([{"role": "user", "content": None}], 'can only concatenate str .not "NoneType". to str'),
        ([{"content": "Hi"}], "message 0 must be .* with a word for role, found {'content': 'Hi'}"),
        ([{"role": "user|><|im_start|>", "content": "Hi"}], "with a word for role"),
        (["Hi"], "message 0 must be"),
        ([{"role": "user", "content": b"Hi"}], "plain data as JSON has it, found a bytes"),
        ([{"role": "user", "content": "\ud83d"}], "half a surrogate pair"),
    ],
)
def test_messages_that_are_none(messages: Any, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        encode_chat(smollm2_tokenizer(), messages)


def test_the_template_refuses() -> None:
    with pytest.raises(BadInput, match=r"these messages: roles must alternate: user.*; change them"):
        encode_chat(llama2(), [*say("Hi"), *say("Hello?")])


def test_no_template() -> None:
    """The format that the vocabulary was made for is built, or one that is named."""
    tokenizer = Tokenizer.from_gguf(smollm2(chat_template=None))
    messages = say("Hi", "Hello", "Bye", system="Be brief.")
    assert encode_chat(tokenizer, messages) == encode_chat(smollm2_tokenizer(), messages)
    with pytest.raises(BadInput, match=r"it has neither; name its format .chatml, .* use puna run --raw"):
        encode_chat(llama2_tokenizer(), messages)
    named = encode_chat(llama2_tokenizer(), messages, chat_format="llama2")
    assert named == encode_chat(llama2(), messages)
    with pytest.raises(BadInput, match="it has none; a base model continues text"):
        render_chat(tokenizer, messages)
    with pytest.raises(BadInput, match="variables are for a file's chat template, found x"):
        encode_chat(tokenizer, messages, variables={"x": 1})


def test_builtin_tools_are_a_variable_of_templates() -> None:
    template = "{{ bos_token }}{{ builtin_tools | join('; ') }}"
    ids = encode_chat(llama3(template), say("Hi"), tools=["brave_search", "<|eot_id|>"])
    assert llama3(template).decode(ids) == "<|begin_of_text|>brave_search; <|eot_id|>"
    assert llama3(template).id("<|eot_id|>") not in ids


def test_builtin_tools_are_not_dropped() -> None:
    with pytest.raises(BadInput, match="knows no builtin tools, found 'brave_search'; define it"):
        encode_chat(llama3("{{ bos_token }}"), say("Hi"), tools=["brave_search"])
    ids = encode_chat(llama3(None), say("Hi"), tools=["brave_search"], chat_format="llama3.1")
    assert ids == build_prompt(
        llama3(None), say("Hi"), chat_format="llama3.1", builtin_tools=["brave_search"]
    )


def test_tools_are_not_dropped() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    with pytest.raises(BadInput, match="template has no place for tools, found 2: the model would not see"):
        encode_chat(llama3("{{ bos_token }}"), say("Hi"), tools=[tool, tool])
    assert encode_chat(llama3("{{ bos_token }}"), say("Hi"), tools=[])


def test_a_template_that_is_no_jinja() -> None:
    with pytest.raises(BadFile, match="must be Jinja, line 2 is not"):
        encode_chat(llama3("{% if true %}\n{% endfor %}"), say("Hi"))


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(_x=1) }}",
        "{% set n = namespace(a=1) %}{% set n.__class__ = 2 %}",
        "{{ dict.mro() }}",
        "{{ lipsum() }}",
        "{{ 1 // 0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_the_sandbox(template: str) -> None:
    with pytest.raises(BadInput, match="cannot take these messages"):
        encode_chat(llama3(template), say("Hi"))


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 8) }}",  # while it is compiled: Jinja computes what is constant
        "{{ 'a' * 10 ** 10 }}",
        "{% set n = messages | length * 10 %}{{ 'a' * n ** 10 }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ '%10000000000d' % 3 }}",
        "{{ messages | tojson(indent=10 ** 10) }}",
        "{% set x = namespace(a='aaaaaaaa') %}{% for i in range(40) %}{% set x.a = x.a ~ x.a %}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_much_ends_alone(template: str) -> None:
    """Each would hold up the process for ever, or take its memory."""
    for _ in range(2):  # the second time nothing is tried
        with pytest.raises(BadFile, match="must be rendered in 1 second and 64 MB"):
            encode_chat(llama3(template), say("Hi"))
    assert encode_chat(llama3("{{ bos_token }}{{ messages[0].content }}"), say("Hi"))


def test_a_template_that_takes_too_much_of_a_long_conversation() -> None:
    """Then it is the conversation that is refused: others can still use the template."""
    loops = "{% for a in messages %}{% for b in messages %}{{ a.content }}{% endfor %}{% endfor %}"
    tokenizer = llama3("{{ bos_token }}" + loops)
    with pytest.raises(BadInput, match="for this conversation it is not; shorten it"):
        encode_chat(tokenizer, say(*["much to say"] * 9001))
    assert encode_chat(tokenizer, say("Hi"))


def test_a_source_that_is_too_long_or_too_deep_is_refused() -> None:
    with pytest.raises(BadFile, match="1048576 characters at most"):
        encode_chat(llama3(" " * 2_000_000), say("Hi"))
    with pytest.raises(BadFile, match="must be"):
        encode_chat(llama3("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}"), say("Hi"))


def test_rendering_needs_no_place_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside the user is not imported by the process that renders."""
    (tmp_path / "jinja2.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    _renderer.cache_clear()
    assert encode_chat(llama3("{{ bos_token }}{{ messages[0].content }}"), say("Hi"))
