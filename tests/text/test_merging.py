"""The merge loop against a direct reading of its definition."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.text import merging
from puna.text.merging import NEVER, Rank, merge


def by_definition(pieces: list[bytes], rank: Rank) -> list[bytes]:
    while len(pieces) > 1:
        lowest, i = min((rank(a, b), i) for i, (a, b) in enumerate(pairwise(pieces)))
        if lowest == NEVER:
            break
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
    return pieces


# Few letters and short tokens, so that ranks fall and rise, and many are equal.
RANKS = st.dictionaries(st.text("ab", min_size=2, max_size=5).map(str.encode), st.integers(0, 5), max_size=12)


@settings(max_examples=300, deadline=None)
@given(text=st.text("abc", max_size=40), ranks=RANKS, limit=st.sampled_from([0, 500]))
def test_as_defined_in_both_ways(text: str, ranks: dict[bytes, int], limit: int) -> None:
    def rank(left: bytes, right: bytes) -> int:
        return ranks.get(left + right, NEVER)

    pieces = [character.encode() for character in text]
    expected = by_definition(pieces, rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "_SCAN_LIMIT", limit)
        assert merge(pieces, rank) == expected


def test_a_long_word_of_one_letter() -> None:
    powers = {b"a" * 2**i: i for i in range(1, 6)}
    pieces = [b"a"] * 200_001
    merged = merge(pieces, lambda left, right: powers.get(left + right, NEVER))
    assert merged == [b"a" * 32] * (200_001 // 32) + [b"a"]
