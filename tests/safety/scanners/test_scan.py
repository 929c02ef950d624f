"""All scanners together: whatever a text is, they answer, with places within it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core import BadValue
from puna.safety.scanners.finding import place
from puna.safety.scanners.scan import DEFAULT, kinds_of, scan

PIECES = (
    "<|", "|>", "eot_id", "[INST]", "4111 1111 1111 1111", "٤١١١١١١١١١١١١١١١", "+49 30 901820",
    "DE89 3704 0044 0532",
    "\u200d", "\u202e", "\U000e0041", "\ufe0f", "🏴", "👨", "a@b.cc", "8.8.8.8", "::1", "password=",
    "AKIA", "-----BEGIN ",
    "PRIVATE KEY-----", "\n", " ", "\ud800", "é", "1", "²", "\U0001d7d9", ".", "```",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)),
    st.sampled_from(["US", "BR", "ES", "IN"]),
)
def test_any_text_is_answered(text: str, region: str) -> None:
    found = scan(text, DEFAULT, region)
    assert found == sorted(found)
    for one in found:
        assert 0 <= one.start < one.end <= len(text)
        assert one.kind in DEFAULT
        line, column = place(text, one.start)
        assert text.split("\n")[line - 1][column - 1 :][:1] == text[one.start].replace("\n", "")


@pytest.mark.parametrize(
    "piece",
    [
        "<",
        "< | e o t ",
        "password ",
        '"',
        "1 ",
        "a.",
        "A1",
        "1:",
        "@",
        "-----BEGIN PRIVATE KEY-----",
        "\u200d",
    ],
)
def test_long_texts_of_one_thing_end(piece: str) -> None:
    """Patterns that grow with the square of a text would take minutes for these."""
    scan(piece * (30_000 // len(piece)), DEFAULT)


def test_kinds_are_a_list() -> None:
    assert kinds_of("secrets, hidden") == ("secrets", "hidden")
    for bad in ("", "hidden,", "all"):
        with pytest.raises(BadValue, match="kinds must be of hidden"):
            kinds_of(bad)
