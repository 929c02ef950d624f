"""The lines that tokenizers are compared on: 6,000, the same on every Python, made of corpus.json.

It has sentences in 32 languages, code in 12, and what has broken one tokenizer or another ("hard").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SENTENCES, CODE, WORDS, EMOJI, SPACES, HARD = (
    _DATA[key] for key in ("sentences", "code", "words", "emoji", "spaces", "hard")
)
# First and last code points of blocks that have long been full of letters, marks, digits or symbols.
BLOCKS = [(int(first, 16), int(last, 16)) for first, last in _DATA["blocks"]]


# Words far longer than natural ones, for which encoders take other ways.
LONG = [
    " " * 5000,
    " " * 3000 + "x",
    "a" * 4000,
    "ab" * 3000,
    "1" * 3000,
    "é" * 2000,
    "\n" * 3000,
    "aab" * 1500,
]


class Dice:
    """Marsaglia's xorshift: the standard library promises no sequence of choices across versions."""

    def __init__(self, seed: int) -> None:
        self.state = seed * 0x9E3779B97F4A7C15 % 2**64 or 1

    def below(self, n: int) -> int:
        x = self.state
        x ^= x << 13 & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 7
        x ^= x << 17 & 0xFFFFFFFFFFFFFFFF
        self.state = x
        return (x >> 11) % n

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def character(self) -> str:
        first, last = self.pick(BLOCKS)
        return chr(first + self.below(last - first + 1))


def sentence(dice: Dice) -> str:
    """Part of a sentence, or of two in different languages."""
    text = dice.pick(SENTENCES)
    if dice.below(3) == 0:
        text += dice.pick([" ", "", "\n", " — "]) + dice.pick(SENTENCES)
    start = dice.below(max(1, len(text) // 2))
    text = text[start : start + 10 + dice.below(len(text))]
    return dice.pick([str, str, str, str.upper, str.title])(text)


def code(dice: Dice) -> str:
    words = [dice.pick(WORDS) for _ in range(3)]
    line = dice.pick(CODE).format(*words, n=dice.below(10 ** (1 + dice.below(6))))
    return dice.pick(["", "", "    ", "\t", "        "]) + line


def characters(dice: Dice) -> str:
    """Letters, marks and symbols of many scripts, with no sense."""
    return "".join(dice.character() for _ in range(1 + dice.below(24)))


def mixture(dice: Dice) -> str:
    kinds: list[Callable[[], str]] = [
        lambda: dice.pick(WORDS),
        lambda: dice.pick(EMOJI),
        lambda: dice.pick(SPACES) * (1 + dice.below(4)),
        lambda: str(dice.below(10 ** (1 + dice.below(9)))),
        lambda: chr(32 + dice.below(95)) * (1 + dice.below(3)),
        lambda: dice.pick(HARD),
        dice.character,
    ]
    return "".join(dice.pick(kinds)() for _ in range(2 + dice.below(12)))


def runs(dice: Dice) -> str:
    """Long repetitions of few characters."""
    alphabet = [
        dice.pick([" ", "\n", "\t", "a", "0", "é", "-", "=", "中", "😀", "\u00a0", "e"]) for _ in range(2)
    ]
    return "".join(dice.pick(alphabet) * (1 + dice.below(40)) for _ in range(1 + dice.below(6)))


def controls(dice: Dice) -> str:
    return "".join(
        chr(dice.below(33) if dice.below(2) else 97 + dice.below(26)) for _ in range(1 + dice.below(20))
    )


def lines() -> list[str]:
    dice = Dice(2026)
    plan = [(sentence, 1800), (code, 1200), (mixture, 1500), (characters, 700), (runs, 350), (controls, 250)]
    made = [kind(dice) for kind, n in plan for _ in range(n)]
    return HARD + LONG + made
