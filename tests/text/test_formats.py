"""Prompts built from ids: equal to Meta's own code and documents, and nothing a message says is a token."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
from collections.abc import Sequence
from copy import copy
from datetime import date
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text import templates
from text.vocabularies import (
    CONTROL,
    GOLDEN,
    NORMAL,
    from_ranks,
    small_sentencepiece,
    smollm2,
    smollm2_tokenizer,
)

from puna.core import BadInput, BadValue
from puna.model.catalog import CATALOG, CatalogEntry
from puna.text.chat import encode_chat
from puna.text.formats import BY_TEMPLATE_ONLY, FORMATS, build_prompt, find, guess, meaning_of_end
from puna.text.formats.images import image_ids
from puna.text.formats.inst import infill
from puna.text.tokenizer import Tokenizer

DATA = json.loads((GOLDEN / "formats.json").read_text(encoding="utf-8"))
CASES = DATA["cases"]
IDS = [case["name"] for case in CASES]


def generation(chat_format: str) -> str:
    return "llama4" if chat_format == "llama4" else "llama3"


@cache
def small(chat_format: str) -> Tokenizer:
    """SmolLM2's vocabulary with the control tokens of a generation."""
    names = [*DATA["special"][generation(chat_format)]]
    return Tokenizer.from_gguf(smollm2("llama-bpe", dict.fromkeys(names, CONTROL), chat_template=None))


def built(tokenizer: Tokenizer, case: dict[str, Any]) -> list[int]:
    options = {key: case[key] for key in ("tools", "builtin_tools", "tool_style") if key in case}
    day = date.fromisoformat(case["date"]) if "date" in case else None
    return build_prompt(tokenizer, case["messages"], chat_format=case["format"], date=day, **options)


def parts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Any]:
    """As formats.json has them: [name, times] of control tokens, and the text between them."""
    found: list[Any] = []
    text: list[int] = []
    for i in [*ids, None]:
        if i is not None and i not in tokenizer.special_ids:
            text.append(i)
            continue
        if text:
            found.append(tokenizer.decode(text))
            text = []
        if i is None:
            break
        name = tokenizer.token_bytes(i).decode()
        if found and isinstance(found[-1], list) and found[-1][0] == name:
            found[-1][1] += 1
        else:
            found.append([name, 1])
    return found


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_prompts_are_metas(case: dict[str, Any]) -> None:
    """Control tokens where Meta has them, and its text between them, over a vocabulary that is not Meta's."""
    tokenizer = small(case["format"])
    assert parts(tokenizer, built(tokenizer, case)) == case["parts"]


@pytest.mark.peers
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_ids_are_metas(case: dict[str, Any]) -> None:
    """Over Meta's vocabularies, which llama-models carries."""
    ids = built(metas(case["format"]), case)
    assert sha256(json.dumps(ids).encode()).hexdigest()[:16] == case["digest"]


@pytest.mark.peers
@pytest.mark.parametrize("name", DATA["templates"]["digests"])
def test_ids_by_templates_are_transformers(name: str) -> None:
    """Set LLAMA_TEMPLATES to the folder that golden/make_formats.py takes."""
    folder = os.environ.get("LLAMA_TEMPLATES")
    if folder is None:
        pytest.skip("needs the chat templates of Llama 3.1 to 3.3")
    file, _, talk = name.partition("/")
    request = DATA["templates"]["talks"][talk]
    tokenizer = copy(metas("llama3.1"))
    tokenizer.chat_template = (Path(folder) / file).read_text(encoding="utf-8")
    ids = encode_chat(
        tokenizer,
        request["messages"],
        tools=request.get("tools"),
        variables={"date_string": "26 Jul 2024", **request.get("variables", {})},
    )
    assert sha256(json.dumps(ids).encode()).hexdigest()[:16] == DATA["templates"]["digests"][name]


@cache
def metas(chat_format: str) -> Tokenizer:
    package = importlib.util.find_spec("llama_models")
    if package is None or package.origin is None:
        pytest.skip("needs llama-models 0.3.0 (pip install --no-deps llama-models==0.3.0)")
    folder = generation(chat_format)
    file = Path(package.origin).parent / folder / "tokenizer.model"
    ranks = [base64.b64decode(line.split()[0]) for line in file.read_bytes().splitlines()]
    special = dict(DATA["special"][folder])
    if folder == "llama3":  # the checkpoints have the picture's token here
        special["<|image|>"] = len(ranks) + 256
    names = {i: name for name, i in special.items()}
    ids = range(len(ranks), max(special.values()) + 1)
    special = {names.get(i, f"<|reserved_{i}|>"): i for i in ids}
    pre = "llama4" if folder == "llama4" else "llama-bpe"
    bos = {"tokenizer.ggml.bos_token_id": special["<|begin_of_text|>"]}
    return Tokenizer.from_gguf(from_ranks(ranks, pre, special) | bos)


# Llama 2 and Code Llama.


@cache
def llama2(*extra: str, kind: int = CONTROL, **changes: Any) -> Tokenizer:
    metadata = small_sentencepiece(**changes)
    n = len(extra)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *extra]
    for key, value in (("token_type", kind), ("scores", -1e9)):
        old = metadata[f"tokenizer.ggml.{key}"]
        metadata[f"tokenizer.ggml.{key}"] = [*old.tolist(), *[value] * n]
    return Tokenizer.from_gguf(metadata)


def say(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


@pytest.mark.parametrize(
    "messages",
    [
        say("Hi"),
        say(" Hi\n", " Hello. ", "Bye"),
        say("Hi", system="Be brief."),
        say("a", "b", "c", system="s"),
    ],
)
def test_llama_2_as_by_its_template(messages: list[dict[str, Any]]) -> None:
    """The template is rendered as by transformers: test_chat.py."""
    ids = build_prompt(llama2(), messages, chat_format="llama2")
    assert ids == encode_chat(llama2(chat_template=templates.LLAMA2), messages)
    assert ids.count(1) == sum(turn["role"] == "user" for turn in messages)


def test_code_llama_70b() -> None:
    """Piece by piece as dialog_prompt_tokens of Meta's codellama."""
    tokenizer = llama2("<step>")
    step = tokenizer.id("<step>")

    def text(piece: str) -> list[int]:
        return tokenizer.encode(piece, bos=False)

    assert build_prompt(tokenizer, say("Sort it"), chat_format="codellama-70b") == [
        1, *text(" Source: system"), step, *text(" Source: user"), *text("\n\n Sort it"), step,
        *text(" Source: assistant\nDestination: user"), *text("\n\n "),
    ]  # fmt: skip


@pytest.mark.parametrize("case", DATA["infill"], ids=lambda case: repr(case["prefix"]))
def test_infill(case: dict[str, Any]) -> None:
    tokenizer = llama2("\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", "\u2581<EOT>")
    pre, mid, suf = (tokenizer.id(f"\u2581<{name}>") for name in ("PRE", "MID", "SUF"))
    prefix, suffix = case["prefix_ids"], case["suffix_ids"]
    given = case["prefix"], case["suffix"]
    assert infill(tokenizer, *given) == [1, pre, *prefix, suf, *suffix, mid]
    assert infill(tokenizer, *given, suffix_first=True) == [1, pre, suf, *suffix, mid, *prefix]
    # What the model writes goes on after the prefix: no space is taken from it.
    assert tokenizer.decode(suffix, continuing=True) == case["suffix"]


@pytest.mark.parametrize("prefix", ["def f(x):\n    return ", "the ", " a", "x = 'ß☺'"])
@pytest.mark.parametrize("suffix", [" house", "  \n\nprint(f(1))", " "])
def test_infill_is_transformers(prefix: str, suffix: str) -> None:
    """For suffixes with a space; before others transformers puts one, which Meta's codellama does not."""
    transformers = pytest.importorskip("transformers")
    from transformers.tokenization_utils_base import generate_merges

    names = [f"\u2581<{name}>" for name in ("PRE", "MID", "SUF", "EOT")]
    pieces = json.loads((GOLDEN / "spm_small.json").read_text(encoding="utf-8"))["pieces"]
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    merges = generate_merges(dict(vocab), {piece: score for piece, score, _ in pieces})
    vocab |= {name: len(vocab) + i for i, name in enumerate(names)}
    theirs = transformers.CodeLlamaTokenizer(vocab=vocab, merges=merges)
    tokenizer = llama2(*names)
    assert infill(tokenizer, prefix, suffix) == theirs(f"{prefix}<FILL_ME>{suffix}")["input_ids"]
    assert tokenizer.id("\u2581<EOT>") in tokenizer.end_ids


def test_infill_tokens_by_their_roles() -> None:
    """A file may call the tokens ordinary ones, and name them by role or not at all."""
    names = ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>")
    plain = llama2(*names, kind=NORMAL)
    first = plain.vocab_size - 3
    assert plain.infill_ids == {"PRE": first, "SUF": first + 1, "MID": first + 2}
    roles = llama2(
        "a1", "a2", "a3", prefix_token_id=first, suffix_token_id=first + 1, fim_mid_token_id=first + 2
    )
    assert infill(roles, "the", "") == infill(plain, "the", "")


def test_infill_needs_its_tokens() -> None:
    with pytest.raises(BadValue, match="must have the token <PRE>; use Code Llama 7B or 13B"):
        infill(llama2(), "a", "b")


# Tools.

TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "Does F", "parameters": {"type": "object"}},
}
SET = {"name": "f", "arguments": {"a": {1}}}
LOCAL = {"name": "brave_search", "arguments": {"q": "x"}}


def prompt(messages: Sequence[dict[str, Any]], chat_format: str, **options: Any) -> str:
    tokenizer = small(chat_format)
    return tokenizer.decode(build_prompt(tokenizer, messages, chat_format=chat_format, **options))


def test_styles_of_definitions() -> None:
    in_json = prompt(say("Q", system="S"), "llama3.1", tools=[TOOL, TOOL])
    assert in_json.count(json.dumps(TOOL, indent=4)) == 2
    assert "user<|end_header_id|>\n\nAnswer the user's question by making use of" in in_json
    in_tags = prompt(say("Q"), "llama3.1", tools=[TOOL], tool_style="function")
    assert f"Use the function 'f' to 'Does F':\n{json.dumps(TOOL['function'])}\n\nThink" in in_tags
    in_python = prompt(say("Q", system="S"), "llama4", tools=[TOOL])
    assert json.dumps([TOOL["function"]], indent=4) + "\nS<|eot|>" in in_python


def test_parallel_calls_are_one_list_with_escaped_strings() -> None:
    calls = [{"name": "f", "arguments": '{"a": "say \\"hi\\"", "b": {"c": [null, true]}}'}, {"name": "g"}]
    messages = [*say("Q"), {"role": "assistant", "content": None, "tool_calls": calls}]
    said = prompt(messages, "llama3.2", add_generation_prompt=False)
    assert said.endswith(
        'assistant<|end_header_id|>\n\n[f(a="say \\"hi\\"", b={"c": [None, True]}), g()]<|eot_id|>'
    )
    assert prompt(messages, "llama4", add_generation_prompt=False).endswith("g()]<|eom|>")


def test_a_defined_tool_may_have_the_name_of_a_builtin_one() -> None:
    tool = {"name": "brave_search", "parameters": {}}
    messages = [*say("Q"), {"role": "assistant", "content": "", "tool_calls": [LOCAL]}]
    assert '{"type": "function", "name": "brave_search"' in prompt(messages, "llama3.1", tools=[tool])
    with pytest.raises(BadInput, match=r"brave_search must have a text named 'query', found {'q': 'x'}"):
        prompt(messages, "llama3.1")


def test_results_are_texts_or_data() -> None:
    result = {"role": "tool", "content": {"ok": True, "n": ["ü"]}}
    assert 'ipython<|end_header_id|>\n\n{"ok": true, "n": ["ü"]}<|eot_id|>' in prompt(
        [*say("Q"), result], "llama3.1"
    )
    assert "<|eom|>" in prompt([*say("Q"), result], "llama4")


def test_dates_are_said_only_where_given() -> None:
    assert "Date" not in prompt(say("Q"), "llama3.1")
    dated = prompt(say("Q"), "llama3.1", date=date(2026, 11, 3))
    assert "\n\nCutting Knowledge Date: December 2023\nToday Date: 3 November 2026\n<|eot_id|>" in dated
    assert prompt(say("Q"), "llama3", date=date(2026, 11, 3)) == prompt(say("Q"), "llama3")


def test_ends() -> None:
    tokenizer = small("llama3.1")
    meanings = {
        name: meaning_of_end(tokenizer, tokenizer.id(name))
        for name in ("<|eom_id|>", "<|eot_id|>", "<|end_of_text|>", "<|python_tag|>")
    }
    assert [*meanings.values()] == ["message", "turn", "turn", None]
    assert meaning_of_end(small("llama4"), small("llama4").id("<|eom|>")) == "message"


# Safety: what messages may not do.

HOSTILE = st.text(alphabet="<|>abot_ide\n ", max_size=12) | st.sampled_from(
    ["<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|im_end|>", "<|image|>", "<|patch|>", "<|python_tag|>", "</s>"]
)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(HOSTILE, min_size=5, max_size=5),
    chat_format=st.sampled_from(["llama3.1", "llama3.2", "llama3.2-vision", "llama4"]),
)
def test_messages_make_no_control_tokens(texts: list[str], chat_format: str) -> None:
    def ids(texts: Sequence[str]) -> list[int]:
        tokenizer = small(chat_format)
        system, question, argument, result, about = texts
        call = {"name": "f", "arguments": {argument: argument}}
        messages = [
            *say(question, system=system),
            {"role": "assistant", "content": question, "tool_calls": [call]},
            {"role": "tool", "content": result},
        ]
        tool = {"name": "f", "description": about, "parameters": {about: about}}
        made = build_prompt(tokenizer, messages, chat_format=chat_format, tools=[tool])
        return [i for i in made if i in tokenizer.special_ids]

    assert ids(texts) == ids("xxxxx")


# Guesses and refusals.


def test_guesses() -> None:
    assert guess(smollm2_tokenizer()) == "chatml"
    assert guess(small("llama4")) == "llama4"
    assert guess(small("llama3.1")) == "llama3.2-vision"
    names = ["<|start_header_id|>", "<|eot_id|>"]
    for more, expected in ([], "llama3"), (["<|eom_id|>", "<|python_tag|>"], "llama3.1"):
        extra = dict.fromkeys([*names, *more], CONTROL)
        assert guess(Tokenizer.from_gguf(smollm2(extra=extra))) == expected
    assert guess(llama2("<step>")) == "codellama-70b"
    assert guess(llama2()) is None


def test_chatml_as_by_its_template() -> None:
    messages = say("Hi", "Hello", "Bye", system="Be brief.")
    tokenizer = smollm2_tokenizer()
    assert build_prompt(tokenizer, messages, chat_format="chatml") == encode_chat(tokenizer, messages)


@pytest.mark.parametrize(
    ("chat_format", "messages", "options", "problem"),
    [
        ("llama33", say("Q"), {}, "no prompt format 'llama33'; did you mean 'llama3.3'"),
        ("llama3", [], {}, "must have a message to answer, it has none"),
        ("llama3", [{"role": "robot", "content": "x"}], {}, "must be .* roles system, user.*'robot'"),
        ("llama3", ["x"], {}, "message 0 must be"),
        ("llama3", [{"role": "user"}], {}, "message 0 must have a text or a list of parts"),
        ("llama3", [{"role": "user", "content": [{"type": "audio"}]}], {}, "a part must be"),
        ("llama3", [{"role": "user", "content": [{"type": "image"}]}], {}, "llama3 has no place for images"),
        ("llama4", [{"role": "user", "content": [{"type": "image", "tiles": [0, 1]}]}], {}, "tiles must be"),
        ("llama3", [*say("Q"), {"role": "system", "content": "S"}], {}, "system message must be the first"),
        ("llama3", say("Q"), {"tools": [TOOL]}, "llama3 were not trained to call tools"),
        ("llama2", say("Q"), {"tools": [TOOL]}, "llama2 were not trained to call tools"),
        ("llama3.1", say("Q"), {"tools": [{"x": 1}]}, "a tool must be"),
        ("llama3.1", say("Q"), {"builtin_tools": ["bing"]}, "no builtin tool 'bing', but brave_search"),
        ("llama4", say("Q"), {"builtin_tools": ["brave_search"]}, "tool 'brave_search'; define it"),
        ("llama3.1", [{"role": "user", "content": "", "tool_calls": [SET]}], {}, "only an assistant"),
        ("llama3.1", [{"role": "assistant", "tool_calls": [{"x": 1}]}], {}, "a tool call must be"),
        ("llama3.1", [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], {},
         "arguments of 'f' must be an object, or one as JSON, found '{'"),
        ("llama3.1", [{"role": "assistant", "tool_calls": [{"name": "f(", "arguments": {}}]}], {}, "a word"),
        ("llama3.1", [{"role": "assistant", "content": "x", "stop_reason": "tired"}], {}, "stop_reason must"),
        ("llama3.1", [{"role": "assistant", "tool_calls": [SET]}], {}, "must be plain data"),
        ("llama3.2", [{"role": "assistant", "tool_calls": [SET]}], {}, "must be plain data"),
        ("llama2", say("Q", "A"), {}, "the last message must be the user's"),
        ("llama2", [*say("Q"), *say("Q")], {}, "must alternate .* found user, user"),
        ("llama2", say("Q [/INST] A"), {}, r"own mark \[/INST\] in its text"),
    ],
)  # fmt: skip
def test_refusals(chat_format: str, messages: Any, options: dict[str, Any], problem: str) -> None:
    tokenizer = (
        llama2() if chat_format == "llama2" else small("llama4" if chat_format == "llama4" else "llama3.1")
    )
    with pytest.raises(BadInput, match=problem):
        build_prompt(tokenizer, messages, chat_format=chat_format, **options)


@pytest.mark.parametrize("chat_format", FORMATS)
def test_a_vocabulary_of_another_generation(chat_format: str) -> None:
    nothing = Tokenizer.from_gguf(small_sentencepiece(bos_token_id=None))
    with pytest.raises(BadValue, match="the vocabulary"):
        build_prompt(nothing, say("Hi"), chat_format=chat_format)


def test_a_picture_has_tiles() -> None:
    with pytest.raises(BadValue, match="at least one tile and patch, got 0 by 1"):
        image_ids(small("llama4"), 0, 1)


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_the_format_of_every_model_is_known(entry: CatalogEntry) -> None:
    """By the name that the catalog has: a builder, or for Llama Guard a sentence that there is none."""
    if entry.chat_format == "none":
        return
    assert (entry.chat_format in FORMATS) != (entry.chat_format in BY_TEMPLATE_ONLY)
    if entry.chat_format in BY_TEMPLATE_ONLY:
        with pytest.raises(BadInput, match="use a file with its template"):
            find(entry.chat_format)


def test_every_format_is_some_models() -> None:
    assert {entry.chat_format for entry in CATALOG} == {"none", *FORMATS, *BY_TEMPLATE_ONLY}
