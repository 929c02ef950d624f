"""The merge loop of byte-pair encoding (Sennrich et al. 2016), shared by both kinds of vocabulary.

Knows pieces and ranks only: what a piece is, and where its rank comes from, is the caller's.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from heapq import heappop, heappush
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
    """The same for words of a million pieces (2 s): the places of each rank wait in a heap of their own.

    Pieces form a linked list; a pair goes by the index of its left piece. A place is out of date when the
    pair now standing there has another rank. In trained vocabularies what a merge makes ranks after it, so
    that a heap is mostly filled in order and emptied once, far cheaper than one heap of pairs.
    """

    def __init__(self, pieces: list[bytes], rank: Rank) -> None:
        n = len(pieces)
        self.pieces, self.rank = pieces, rank
        self.before, self.after = array("i", range(-1, n - 1)), array("i", range(1, n + 1))
        self.ranks = array("i", [rank(a, b) for a, b in pairwise(pieces)])
        self.ranks.append(NEVER)
        self.places: dict[int, list[int]] = {}
        self.waiting: list[int] = []  # a heap of the keys of `places`
        for i, r in enumerate(self.ranks):
            self._wait(i, r)

    def run(self) -> list[bytes]:
        while self.waiting:
            self._merge_all(heappop(self.waiting))
        return [piece for piece in self.pieces if piece]

    def _merge_all(self, rank: int) -> None:
        """Merge the pairs of one rank from left to right, until none is left or a lower rank has come up."""
        places = self.places[rank]
        while places:
            left = heappop(places)
            if self.ranks[left] == rank:
                self._join(left)
                if self.waiting and self.waiting[0] < rank:
                    heappush(self.waiting, rank)
                    return
        del self.places[rank]

    def _join(self, left: int) -> None:
        pieces, ranks, after = self.pieces, self.ranks, self.after
        right = after[left]
        pieces[left] += pieces[right]
        pieces[right], ranks[right], ranks[left] = b"", NEVER, NEVER
        following = after[left] = after[right]
        if following < len(pieces):
            self.before[following] = left
            ranks[left] = self.rank(pieces[left], pieces[following])
            self._wait(left, ranks[left])
        previous = self.before[left]
        if previous >= 0:
            ranks[previous] = self.rank(pieces[previous], pieces[left])
            self._wait(previous, ranks[previous])

    def _wait(self, place: int, rank: int) -> None:
        if rank == NEVER:
            return
        places = self.places.get(rank)
        if places is None:
            self.places[rank] = [place]
            heappush(self.waiting, rank)
        else:
            heappush(places, place)
