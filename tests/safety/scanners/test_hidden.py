"""Hidden characters, against Unicode's properties (library `regex`), published attacks and sequences."""

from __future__ import annotations

import sys

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.safety.scanners.hidden import scan

LOOKED_FOR = regex.compile(
    r"[\p{DI}\p{Co}\p{Cs}\p{Cc}\p{Noncharacter_Code_Point}\p{Bidi_Control}\ufff9-\ufffb--[\t\n\r\f\xad]]",
    regex.V1,
)
LETTERS = "".join(map(chr, range(ord("a"), ord("z") + 1)))


def tags(text: str) -> str:
    return "".join(chr(0xE0000 + ord(c)) for c in text)


def selectors(raw: bytes) -> str:
    """Butler, "Smuggling arbitrary data through an emoji" (2025)."""
    return "".join(chr(0xFE00 + b) if b < 16 else chr(0xE0100 + b - 16) for b in raw)


def test_between_latin_letters_exactly_the_invisible_is_found() -> None:
    dense = [*range(0x3400), *range(0x9F00, 0xAD00), *range(0xD700, 0x20000), *range(0xE0000, 0xE1100)]
    sparse = range(0, sys.maxunicode + 1, 251)  # ideographs, syllables, what is not assigned
    codes = sorted({*dense, *sparse, *range(0xFFFE, sys.maxunicode + 1, 0x10000)} - {ord("\n")})
    text = "".join(f"a{chr(code)}b\n" for code in codes)
    found = {i for one in scan(text) for i in range(one.start, one.end)}
    expected = {match.start() for match in LOOKED_FOR.finditer(text)}
    assert [hex(ord(text[i])) for i in sorted(found ^ expected)] == []


@settings(deadline=None)
@given(st.text(LETTERS + " .!", min_size=1, max_size=50), st.text(LETTERS))
def test_smuggled_texts_are_decoded(hidden: str, shown: str) -> None:
    [found] = scan(shown + tags(hidden) + shown)
    assert (found.start, found.end, found.rule) == (len(shown), len(shown) + len(hidden), "tag-characters")
    assert repr(hidden) in found.detail
    [found] = scan("🙂" + selectors(hidden.encode()) + shown)
    assert found.rule == "variation-selectors"
    assert len(hidden) == 1 or repr(hidden) in found.detail


@settings(deadline=None)
@given(st.text())
def test_findings_cover_invisible_characters_alone(text: str) -> None:
    found = scan(text)
    places = [i for one in found for i in range(one.start, one.end)]
    assert places == sorted(set(places))
    assert all(LOOKED_FOR.match(text[i]) or text[i] == "\xad" for i in places)


@pytest.mark.parametrize(
    "text",
    [
        "👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🏴‍☠️ 🙂‍↔️ ❤️‍🔥 👁️‍🗨️ 🧑🏿‍❤️‍💋‍🧑🏻",  # families, skin tones, joined with styles
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # Scotland: UTS #51
        "🏴\U000e0075\U000e0073\U000e0074\U000e0078\U000e007f",  # Texas
        "1️⃣ #️⃣ ☎︎ ™️ ‼️ ↔️ ⤴️ ㊗️ 〰️",
        "می‌خواهم نامه‌ای‌ بنویسم",  # Persian: joined by nothing, at a word's end too
        "क्‍ष क्‌ष ശ്രീ ന്‍",  # Devanagari, Malayalam: Unicode chapter 12
        "‏שלום‎ (Python 3)‏",  # marks of direction
        "קובץ \u2068README.md\u2069 נפתח",  # an isolate in a Hebrew line
        "ភាសា\u200bខ្មែរ ภาษา\u200bไทย",  # where lines may end
        "葛\U000e0100飾区 ≨︀ 0︀ ︽",  # ideographic and standardized variants
        "ᠠ\u180bᠨ",  # Mongolian
        "\ufeffA file with a byte order mark",
        "Donau\xaddampf\xadschiff",
        "tab\tand\r\nlines\n\x0cof a page",
    ],
)
def test_honest_uses_are_left_alone(text: str) -> None:
    assert scan(text) == []


@pytest.mark.parametrize(
    ("text", "rule", "span"),
    [
        ("if access != '\u202e \u2066// admin only\u2069 \u2066'", "direction", (14, 15)),  # CVE-2021-42574
        ("ig\u200bnore", "zero-width", (2, 3)),
        ("a\u200d\u200c\u2060b", "zero-width", (1, 4)),
        ("a\ufeffb", "zero-width", (1, 2)),
        ("می\u200c\u200cخ", "zero-width", (2, 4)),  # two joiners in a row say nothing
        ("👨\u200d", "zero-width", (1, 2)),
        ("🏴" + tags("gbsctxxx\x7f"), "tag-characters", (1, 10)),  # no region has such a code
        ("שלום \u202eabc", "direction", (5, 6)),
        ("שלום \u2067abc", "direction", (5, 6)),  # opened and not closed
        ("x\x1b[2J", "control", (1, 2)),
        ("a\U000f0000b", "private-use", (1, 2)),
        ("\ud800", "no-character", (0, 1)),
        ("\xad\xad", "zero-width", (0, 2)),
        ("ᠠ\ufe01", "variation-selectors", (1, 2)),
    ],
)
def test_misuse_is_found(text: str, rule: str, span: tuple[int, int]) -> None:
    first = scan(text)[0]
    assert (first.rule, (first.start, first.end)) == (rule, span)
