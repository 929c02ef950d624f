"""Lists of patterns: what they find, that none can hang, and what is wrong with a file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from puna.core import BadFile, BadValue
from puna.safety.classifiers import make
from puna.safety.classifiers.patterns import Patterns
from puna.safety.verdict import Content, Verdict

LIST = r"""
[[pattern]]
name = "projects"
pattern = '(?i)\bproject (atlas|borealis)\b'
category = "Confidential Plans"

[[pattern]]
name = "nested"
pattern = '(a+)+$'
category = "letters"
"""


def judged(classifier: Patterns, *texts: Content) -> list[Verdict]:
    return list(asyncio.run(classifier.judge([[("user", text)] for text in texts])))


@pytest.fixture
def patterns(tmp_path: Path) -> Patterns:
    path = tmp_path / "list.toml"
    path.write_text(LIST)
    made = make(f"patterns:{path}")
    assert isinstance(made, Patterns)
    assert made.name == "patterns:list.toml"
    return made


def test_texts_that_match_are_unsafe(patterns: Patterns) -> None:
    parts = [{"type": "text", "text": "About"}, {"type": "text", "text": "Project Borealis"}]
    safe, one, two, split, odd = judged(
        patterns, "nothing", "PROJECT ATLAS?", "project atlas is a", parts, "\ud800 project atlas!"
    )
    assert safe == Verdict(False, 0.0)
    assert one == split == odd == Verdict(True, 1.0, ("confidential-plans",))
    assert two.categories == ("confidential-plans", "letters")
    assert judged(patterns) == []


def test_only_the_last_turn_counts(patterns: Patterns) -> None:
    turns = [("user", "project atlas"), ("assistant", "fine.")]
    [found] = asyncio.run(patterns.judge([turns]))
    assert not found.is_unsafe
    with pytest.raises(BadValue, match="must have a message"):
        asyncio.run(patterns.judge([[]]))
    with pytest.raises(BadValue, match="judges texts only, got an image"):
        judged(patterns, [{"type": "image", "image": b""}])


def test_a_pattern_that_hangs_other_engines_does_not(patterns: Patterns) -> None:
    """`(a+)+$` takes 2**n steps in Python's re: for these texts longer than the universe is old."""
    long, mixed = judged(patterns, "a" * 1_000_000 + "!", "a!" * 200_000)
    assert (long.is_unsafe, mixed.is_unsafe) == (False, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"must have \[\[pattern\]\] tables and nothing else, found none"),
        ("pattern = 1", r"must have \[\[pattern\]\] tables"),
        ("x = ", "must be TOML"),
        (
            "[[pattern]]\nname='a'\npattern='b'\ncategory='c'\nregex='d'",
            "pattern 1 has an unknown field 'regex'",
        ),
        ("[[pattern]]\nname='a'\npattern='b'", "pattern 1 must have a text as category, got None"),
        ("[[pattern]]\nname='a'\npattern='b'\ncategory='!'", "category must have a letter or digit"),
        ("[[pattern]]\nname='a'\npattern='(?=b)'\ncategory='c'", "RE2, without look-around"),
        ("[[pattern]]\nname='a'\npattern='b*'\ncategory='c'", "must not match the empty text"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadFile, match=said):
        make(f"patterns:{path}")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="No such file"):
        make(f"patterns:{tmp_path / 'none.toml'}")
    (tmp_path / "latin").write_bytes(b"# \xe9")
    with pytest.raises(BadFile, match="must be TOML"):
        make(f"patterns:{tmp_path / 'latin'}")
