"""What a scanner reports: a stretch of the text, and why somebody should look at it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Characters `start` to `end` of a text."""

    start: int
    end: int
    kind: str  # the scanner: one of scan.KINDS
    rule: str  # which of its rules, as a word
    detail: str  # the reason, a sentence for people; never the secret or the personal data itself


def masked(text: str) -> str:
    """Enough of a secret to find it again, too little to use it: "AKIA… (20 characters)"."""
    shown = text[: min(4, len(text) // 4)]
    return f"{shown}… ({len(text)} characters)"


def place(text: str, at: int) -> tuple[int, int]:
    """Line and column of a character, both from 1."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
