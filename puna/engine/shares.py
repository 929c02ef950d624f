"""Whose cache blocks are taken when there are too few: for a sequence that is to be let in, and for one that
grows.

Nobody loses blocks to and fro: a higher priority takes from a lower one that is also behind it in rank, and
a tenant takes from another of its priority only what leaves that one at least as much as itself, which brings
the smaller part nearer to the larger one. The first of the running ones in rank keeps its blocks, unless
somebody with a higher priority is before it: so whoever is first of all always moves on.

Only integers. Order of `running`: by rank.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass

from puna.engine.blocks import BlockManager
from puna.engine.fair_queue import Flow
from puna.engine.sequence import Sequence


@dataclass(slots=True)
class Lack:
    """What keeps a sequence from being let in; 0 or less: nothing."""

    places: int
    blocks: int = 0
    local_blocks: int = 0

    def __bool__(self) -> bool:
        return self.places > 0 or self.blocks > 0 or self.local_blocks > 0


class _Parts:
    """Sequences and blocks that flows have."""

    def __init__(self, running: List[Sequence]) -> None:
        self.sequences: dict[Flow, int] = {}
        self.blocks: dict[Flow, int] = {}
        for seq in running:
            self.sequences[seq.flow] = self.sequences.get(seq.flow, 0) + 1
            self.blocks[seq.flow] = self.blocks.get(seq.flow, 0) + len(seq.blocks)

    def lose(self, seq: Sequence) -> None:
        self.sequences[seq.flow] -= 1
        self.blocks[seq.flow] -= len(seq.blocks)


def victims(seq: Sequence, running: List[Sequence], blocks: BlockManager, lack: Lack) -> list[Sequence]:
    """Who has to go for `seq` to be let in, latest first; nobody if that would not be enough."""
    parts, found = _Parts(running), list[Sequence]()
    n_needed = blocks.n_needed(len(seq.tokens))
    for i in range(len(running) - 1, -1, -1):
        if not lack:
            break
        other = running[i]
        if not (_outranks(seq, other) or (i and _has_more(other, seq, parts, lack, n_needed))):
            continue
        found.append(other)
        parts.lose(other)
        own, own_local = blocks.n_own(other)
        lack = Lack(lack.places - 1, lack.blocks - own - 1, lack.local_blocks - own_local - 1)  # 1: reserve
    return [] if lack else found


def weakest(running: List[Sequence]) -> Sequence:
    """Who has to go for another one to grow: of the lowest priority, of whom has most, the latest."""
    parts = _Parts(running).blocks
    return max(running[1:] or running, key=lambda seq: (-seq.flow.priority, parts[seq.flow], seq.rank))


def _outranks(seq: Sequence, other: Sequence) -> bool:
    return seq.flow.priority > other.flow.priority and seq.rank < other.rank


def _has_more(other: Sequence, seq: Sequence, parts: _Parts, lack: Lack, n_needed: int) -> bool:
    """Whether the tenant of `other` without it still has as much as that of `seq` with it."""
    rich, poor = other.flow, seq.flow
    if rich is poor or rich.priority != poor.priority:
        return False
    if lack.places > 0 and parts.sequences[rich] - 1 < parts.sequences.get(poor, 0) + 1:
        return False
    takes_blocks = lack.blocks > 0 or lack.local_blocks > 0
    return not takes_blocks or parts.blocks[rich] - len(other.blocks) >= parts.blocks.get(poor, 0) + n_needed
