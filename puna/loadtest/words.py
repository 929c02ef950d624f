"""Prompts of real words, each about one token to any tokenizer of a Llama.

The server's usage is what counts; lengths asked for are met within a few percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

# Frequent English words; a test holds them to one token each, with the space before, by a real tokenizer.
_TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an
they which one you were all her she there would their we him been has when who will no more if out
so up said what its about than into them can only other time new some could these two may first then
do any like my now over such our man me even most made after also did many off before must well back
through years much where your way down should because long each just state those people too good
world day great water every house place work part night small found right left thought number course
set side during public group order point system second four help city light study power free sea
white given
"""
WORDS = tuple(_TEXT.split())

BLOCK = 512  # tokens of one block of a trace


def content(n: int, random: Random, n_prefix: int, prefix: str, blocks: Sequence[int]) -> str:
    """Text of about `n` tokens: blocks of a trace if it has them, else `n_prefix` of a shared beginning, and
    words of `random` for the rest."""
    words: list[str] = []
    for block in blocks:
        words += _run(f"block {block}", BLOCK)
    words += _run(prefix, n_prefix) if n_prefix and not blocks else ()
    words += random.choices(WORDS, k=max(0, n - len(words)))
    return " ".join(words[:n])


def _run(name: str, n: int) -> Sequence[str]:
    """The first `n` words of an endless text; runs of one text begin alike, whatever their length."""
    return _cached_run(name, -(-n // BLOCK))[:n]


@lru_cache(maxsize=1024)
def _cached_run(name: str, n_blocks: int) -> tuple[str, ...]:
    return tuple(Random(name).choices(WORDS, k=n_blocks * BLOCK))
