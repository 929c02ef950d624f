"""The merge loop of byte-pair encoding (Sennrich et al. 2016), shared by both kinds of vocabulary.

Knows pieces and ranks only: what a piece is, and where its rank comes from, is the caller's.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import pairwise

NEVER = 1 << 30  # the rank of a pair that does not merge; above every real one

# Up to about this many pieces, looking for the lowest rank costs less than keeping order: 8 ms at most.
_SCAN_LIMIT = 500

Rank = Callable[[bytes, bytes], int]


def merge(pieces: list[bytes], rank: Rank) -> list[bytes]:
    """Join adjacent pieces until none can be: always the pair of lowest rank, the leftmost of equals.

    `pieces` is used up. Time is O(n log n) for long inputs.
    """
    if len(pieces) > _SCAN_LIMIT:
        return _LongMerge(pieces, rank).run()
    ranks = [rank(a, b) for a, b in pairwise(pieces)]
    while ranks and (lowest := min(ranks)) < NEVER:
        i = ranks.index(lowest)
        pieces[i] += pieces.pop(i + 1)
        del ranks[i]
        if i:
            ranks[i - 1] = rank(pieces[i - 1], pieces[i])
        if i < len(ranks):
            ranks[i] = rank(pieces[i], pieces[i + 1])
    return pieces


class _LongMerge:
    """The same for words of a million pieces (2 s): places wait in one list for each rank.

    Pieces form a linked list; a pair goes by the index of its left piece. A place is out of date when the pair
    now standing there has another rank. In a trained vocabulary what a merge makes ranks after it, so a list is
    complete when its turn comes; where a file breaks that rule, the list waits again and the result is the same.
    """

    def __init__(self, pieces: list[bytes], rank: Rank) -> None:
        n = len(pieces)
        self.pieces, self.rank = pieces, rank
        self.before, self.after = array("i", range(-1, n - 1)), array("i", range(1, n + 1))
        self.ranks = array("i", [rank(a, b) for a, b in pairwise(pieces)])
        self.ranks.append(NEVER)
        self.places: dict[int, list[int]] = {}
        for i, r in enumerate(self.ranks):
            if r < NEVER:
                self.places.setdefault(r, []).append(i)
        self.waiting = list(self.places)
        heapify(self.waiting)

    def run(self) -> list[bytes]:
        while self.waiting:
            self._merge_all(heappop(self.waiting))
        return [piece for piece in self.pieces if piece]

    def _merge_all(self, rank: int) -> None:
        """Merge the pairs of one rank from left to right, until a lower (or the same) rank has come up."""
        places = self.places.pop(rank)
        places.sort(reverse=True)
        while places:
            left = places.pop()
            if self.ranks[left] == rank:
                self._join(left)
                if self.waiting and self.waiting[0] <= rank:
                    for i in places:
                        self._wait(i, rank)
                    return

    def _join(self, left: int) -> None:
        pieces, ranks, after = self.pieces, self.ranks, self.after
        right = after[left]
        pieces[left] += pieces[right]
        pieces[right], ranks[right] = b"", NEVER
        following = after[left] = after[right]
        ranks[left] = NEVER
        if following < len(pieces):
            self.before[following] = left
            ranks[left] = r = self.rank(pieces[left], pieces[following])
            if r < NEVER:
                self._wait(left, r)
        previous = self.before[left]
        if previous >= 0:
            ranks[previous] = r = self.rank(pieces[previous], pieces[left])
            if r < NEVER:
                self._wait(previous, r)

    def _wait(self, place: int, rank: int) -> None:
        places = self.places.get(rank)
        if places is None:
            self.places[rank] = [place]
            heappush(self.waiting, rank)
        else:
            places.append(place)
