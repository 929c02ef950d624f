"""Streams give what decoding the whole gives, cut at the first stop string, and never half a character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text.vocabularies import llama2_tokenizer, smollm2_tokenizer

from puna.core import BadValue
from puna.text.stream import TextStream
from puna.text.tokenizer import Tokenizer

TOKENIZERS = [smollm2_tokenizer(), llama2_tokenizer()]
TEXTS = st.text(st.sampled_from("ab \n<|é中🦙\u200d.0"), max_size=30)


def run(stream: TextStream, ids: Sequence[int]) -> list[str]:
    """What each push and the flush gave."""
    return [*map(stream.push, ids), stream.flush()]


def cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """`text` up to the stop string that is complete first, and which that is."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=300, deadline=None)
@given(
    tokenizer=st.sampled_from(TOKENIZERS),
    text=TEXTS,
    stops=st.lists(st.text("ab <é中\n.", min_size=1, max_size=4), max_size=4),
    continuing=st.booleans(),
)
def test_joined_it_is_the_decoded_text_cut(
    tokenizer: Tokenizer, text: str, stops: list[str], continuing: bool
) -> None:
    ids = tokenizer.encode(text, bos=False)
    stream = TextStream(tokenizer, stops, continuing=continuing)
    expected, stopped = cut(tokenizer.decode(ids, continuing=continuing), stops)
    assert "".join(run(stream, ids)) == expected
    assert stream.stopped == stopped


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 1299), max_size=20), skip_special=st.booleans(), continuing=st.booleans())
def test_any_ids(ids: list[int], skip_special: bool, continuing: bool) -> None:
    """Also ids that no text has: bytes that are not UTF-8, control tokens, spaces."""
    for tokenizer in TOKENIZERS:
        stream = TextStream(tokenizer, skip_special=skip_special, continuing=continuing)
        expected = tokenizer.decode(ids, skip_special=skip_special, continuing=continuing)
        assert "".join(run(stream, ids)) == expected


def test_half_a_character_is_held_back() -> None:
    tokenizer = smollm2_tokenizer()
    ids = tokenizer.encode("🦙中")
    given_ = run(TextStream(tokenizer), ids)
    assert len(ids) > 2
    assert [text for text in given_ if text] == ["🦙", "中"]
    assert run(TextStream(tokenizer), ids[:1]) == ["", "\ufffd"]


def test_only_what_may_be_a_stop_is_held_back() -> None:
    tokenizer = llama2_tokenizer()
    stream = TextStream(tokenizer, ["END"])
    ids = tokenizer.encode("xEaEN", bos=False)
    pushed = "".join(map(stream.push, ids))
    assert pushed == "xEa"
    assert stream.flush() == "EN"
    assert stream.stopped is None


def test_nothing_follows_a_stop() -> None:
    tokenizer = smollm2_tokenizer()
    stream = TextStream(tokenizer, ["\n\n", "stop"])
    ids = tokenizer.encode("One stop, and more\n\n")
    assert "".join(run(stream, ids)) == "One "
    assert stream.stopped == "stop"
    assert run(stream, ids) == [""] * (len(ids) + 1)


def test_the_space_before_every_text() -> None:
    tokenizer = llama2_tokenizer()
    ids = tokenizer.encode("alpha", bos=False)
    assert "".join(run(TextStream(tokenizer), ids)) == "alpha"
    assert "".join(run(TextStream(tokenizer, continuing=True), ids)) == " alpha"


def test_special_tokens_are_shown_or_not() -> None:
    tokenizer = smollm2_tokenizer()
    ids = tokenizer.encode("a<|im_end|>b", special=True)
    assert "".join(run(TextStream(tokenizer), ids)) == "a<|im_end|>b"
    assert "".join(run(TextStream(tokenizer, skip_special=True), ids)) == "ab"


def test_an_id_outside_the_vocabulary() -> None:
    with pytest.raises(BadValue, match="from 0 to 49151, got 49152"):
        TextStream(smollm2_tokenizer()).push(49152)
