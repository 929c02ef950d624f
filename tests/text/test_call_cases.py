"""2,000 generated answers: what they say is read, in whatever pieces it comes; what is malformed is kept."""

from __future__ import annotations

import random
from typing import Any

import pytest
from text.call_cases import ALL, TOOLS, Case, cases
from text.vocabularies import llama2_tokenizer, smollm2_tokenizer

from puna.text.stream import TextStream
from puna.text.tokenizer import Tokenizer
from puna.text.tools import parse_tool_calls

CASES = list(cases(2000))


def parsed(pieces: Any) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    text, calls = parse_tool_calls(pieces, TOOLS)
    return text, [(call.name, dict(call.arguments)) for call in calls]


def in_tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text as a stream gives it out, token by token; a character may take several."""
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in tokenizer.encode(text, bos=False)), stream.flush()]


@pytest.mark.parametrize("form", ALL)
def test_what_is_said_is_read(form: str) -> None:
    n = 0
    for case in CASES:
        if case.form == form and case.is_whole:
            assert parsed(case.text) == (case.content, case.calls), case.text
            n += 1
    assert n > 50


@pytest.mark.parametrize("form", ALL)
def test_pieces_make_no_difference(form: str) -> None:
    """Characters, tokens of two vocabularies, and random pieces, against the whole."""
    rng = random.Random(form)
    for case in CASES:
        if case.form == form:
            text, whole = case.text, parsed(case.text)
            cuts = sorted(rng.randrange(len(text) + 1) for _ in range(5))
            pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            for cut in (list(text), pieces, in_tokens(smollm2_tokenizer(), text)):
                assert "".join(cut) == text
                assert parsed(cut) == whole, cut


def test_pieces_of_another_vocabulary() -> None:
    for case in CASES[::10]:
        pieces = in_tokens(llama2_tokenizer(), case.text)  # spells most characters by their bytes
        assert parsed(pieces) == parsed("".join(pieces))


def test_what_is_cut_off_comes_as_text() -> None:
    """Calls before the one that was cut off are calls; nothing of that one is lost, and none is made up."""
    n_lost = 0
    for case in CASES:
        if not case.is_whole:
            check_cut(case)
            n_lost += 1
    assert n_lost > 600


def check_cut(case: Case) -> None:
    content, calls = parsed(case.text)
    n = len(case.calls)
    assert calls[:n] == case.calls, case.text
    if calls == case.calls:
        assert content.endswith(case.content), case.text
    else:  # cut where it is whole all the same: </function> is wanting, or code goes on
        assert case.form.startswith(("function", "tag", "start", "code", "json")), case
        assert len(calls) > n
