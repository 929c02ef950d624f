"""Long texts are cut by another call than short ones: into the same words."""

from __future__ import annotations

from random import Random

import pytest

from puna.text import pretokenizers
from puna.text.pretokenizers import find, splitter

PIECES = [
    "a", "b", " ", "  ", "\n", "\n\n", " \n", "é", "ß", "7", "42", "1234", "'s", "'LL", ".", "!?", "中", "文",
    "😀", "e\u0301", "\t", "\r\n", "A", "Zz", "\u00a0", "\u200d",
]  # fmt: skip
NAMES = sorted(names[0] for names in pretokenizers._SCHEMES.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_long_text_has_the_words_of_its_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, rng = splitter(find(name)), Random(0)
    for _ in range(20):
        text = "".join(rng.choice(PIECES) for _ in range(400))
        short = cut(text)
        monkeypatch.setattr(pretokenizers, "_LONG", 0)
        assert cut(text) == short
        assert "".join(short) == text
        monkeypatch.undo()
