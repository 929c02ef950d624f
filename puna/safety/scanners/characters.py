"""Which characters are invisible, and in which writing systems they have a use. Unicode 16, no library.

Ranges are inclusive. Source: DerivedCoreProperties.txt (Default_Ignorable_Code_Point), UAX #9 (marks of
direction), UTS #51 (emoji sequences), The Unicode Standard chapters 9, 12, 13 and 23 (joiners in scripts).
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence

Ranges = Sequence[tuple[int, int]]

TAGS: Ranges = ((0xE0000, 0xE007F),)
SELECTORS: Ranges = ((0x180B, 0x180D), (0x180F, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
# direction: marks, embeddings and overrides, isolates
BIDI: Ranges = ((0x061C, 0x061C), (0x200E, 0x200F), (0x202A, 0x202E), (0x2066, 0x2069))
# the rest of Default_Ignorable_Code_Point, and the anchors of interlinear notes
ZERO_WIDTH: Ranges = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180E, 0x180E),
    (0x200B, 0x200D), (0x2060, 0x2065), (0x206A, 0x206F), (0x3164, 0x3164), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0080, 0xE00FF),
    (0xE01F0, 0xE0FFF),
)  # fmt: skip

# where ZERO WIDTH (NON-)JOINER shapes letters: Arabic to Samaritan, Indic to Sinhala, Tibetan, Myanmar,
# Khmer, Mongolian, Balinese to Lepcha, Phags-pa to Meetei, Arabic forms, Brahmi and its descendants
_JOINING: Ranges = (
    (0x0600, 0x08FF), (0x0900, 0x0DFF), (0x0F00, 0x109F), (0x1780, 0x18AF), (0x1A20, 0x1C4F),
    (0xA840, 0xABFF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE), (0x10A00, 0x10FFF), (0x11000, 0x11FFF),
    (0x1E900, 0x1E95F),
)  # fmt: skip
# written without spaces: ZERO WIDTH SPACE says where a line may end
_UNSPACED: Ranges = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF))
_MONGOLIAN: Ranges = ((0x1800, 0x18AF), (0x11660, 0x1167F))
_HAN: Ranges = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFD))
_VARIED: Ranges = (
    (0x1000, 0x109F),
    (0x3000, 0x303F),
    *_HAN[:2],
    (0xA840, 0xA87F),
    _HAN[2],
    (0xFF00, 0xFFEF),
    _HAN[3],
)
_EMOJI_PLANE: Ranges = ((0x1F000, 0x1FAFF),)
# pictographs that Unicode counts among letters, signs of mathematics or punctuation
_EMOJI_ODD = frozenset("\u203c\u2049\u2139\u2194\u2195\u25fb\u25fc\u25fd\u25fe\u2934\u2935\u3030\u303d")
_KEYCAPS = frozenset("0123456789#*")
_SKIN_TONES: Ranges = ((0x1F3FB, 0x1F3FF),)


def within(character: str, ranges: Ranges) -> bool:
    """Whether a character, or none (""), lies in one of the ranges, which rise."""
    if not character:
        return False
    code = ord(character)
    at = bisect_right(ranges, (code, 0x110000)) - 1
    return at >= 0 and code <= ranges[at][1]


def is_pictograph(character: str) -> bool:
    """What emoji are made of; wider than Extended_Pictographic by symbols that nobody joins."""
    if not character:
        return False
    return (
        unicodedata.category(character) == "So" or character in _EMOJI_ODD or within(character, _EMOJI_PLANE)
    )


def is_skin_tone(character: str) -> bool:
    return within(character, _SKIN_TONES)


def may_join(character: str) -> bool:
    return within(character, _JOINING)


def is_unspaced(character: str) -> bool:
    return within(character, _UNSPACED)


def may_vary(base: str, selector: str) -> bool:
    """Whether a variation selector after this character is one that fonts know of.

    Emoji and text style after symbols and keycaps, standardized variants (math, CJK, Myanmar), ideographic
    variation sequences, Mongolian letters.
    """
    if not base:
        return False
    if within(selector, ((0x180B, 0x180D), (0x180F, 0x180F))):
        return within(base, _MONGOLIAN)
    if within(selector, ((0xE0100, 0xE01EF),)):
        return within(base, _HAN)
    if selector in "\ufe0e\ufe0f":
        return is_pictograph(base) or base in _KEYCAPS or unicodedata.category(base) in ("Sm", "Sk")
    # StandardizedVariants.txt: mathematics, zero, punctuation of CJK, ideographs, Myanmar, Phags-pa
    return selector <= "\ufe02" and (
        within(base, _VARIED) or base == "0" or unicodedata.category(base) == "Sm"
    )


def is_right_to_left(text: str) -> bool:
    """Whether some letter of it is written from right to left."""
    return any(unicodedata.bidirectional(character) in ("R", "AL") for character in text)
