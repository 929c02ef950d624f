"""Text as it looks: compatibility forms, look-alikes and invisible characters folded to what they imitate.

NFKC turns full-width and mathematical letters into ordinary ones; the library confusable-homoglyphs has
Unicode's confusables.txt, whose letters of other scripts look like Latin ones.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cache

from puna.safety.scanners import characters as ch
from puna.safety.scanners.libraries import need

_FOLDED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<>[]/_"
_BAR_NAMES = ("VERTICAL", "BAR", "DIVIDES", "DENTAL CLICK")  # confusables.txt has bars under the letter l
# beside that file, what serves as brackets and bars of control tokens in print and in DeepSeek's vocabulary
_ANGLES = {
    "\u2329": "<", "\u27e8": "<", "\u3008": "<", "\u232a": ">", "\u27e9": ">", "\u3009": ">", "\u27ea": "<<",
    "\u27eb": ">>", "\u300a": "<<", "\u300b": ">>", "\u00ab": "<<", "\u00bb": ">>", "\u00a6": "|",
    "\u2581": "_",
}  # fmt: skip


def fold(text: str) -> tuple[str, list[int] | None]:
    """The text as it looks, and the place in `text` of each of its characters; None where they are equal.

    Raises BadInput where the library is not installed.
    """
    if text.isascii():
        return text, None
    table = _look_alikes()
    looks = {character: _look(character, table) for character in set(text)}
    parts: list[str] = []
    places: list[int] = []
    for at, character in enumerate(text):
        look = looks[character]
        parts.append(look)
        places += [at] * len(look)
    return "".join(parts), places


def _look(character: str, table: Mapping[str, str]) -> str:
    """An empty text for what is not seen."""
    if character.isascii():
        return character
    forms = unicodedata.normalize("NFKC", character)
    if forms.isascii():  # before the look-alikes, which take a wide I for a small L
        return forms
    return table.get(character) or "".join(table.get(c, c) for c in forms if not _is_invisible(c))


def _is_invisible(character: str) -> bool:
    """Marks are taken away too: a token with a dot below is the same to whoever reads it."""
    hidden = (ch.TAGS, ch.SELECTORS, ch.BIDI, ch.ZERO_WIDTH)
    return unicodedata.category(character) == "Mn" or any(ch.within(character, one) for one in hidden)


@cache
def _look_alikes() -> Mapping[str, str]:
    """Other character -> what it looks like, in the characters of control tokens."""
    library = need("confusable_homoglyphs.confusables", "confusable-homoglyphs", "the scanner `special`")
    table = dict(_ANGLES)
    for ours in _FOLDED:
        for entry in library.confusables_data.get(ours, ()):
            other = entry["c"]
            if len(other) == 1 and not other.isascii():
                is_bar = ours == "l" and any(name in entry["n"] for name in _BAR_NAMES)
                table.setdefault(other, "|" if is_bar else ours)
    return table
