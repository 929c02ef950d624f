"""Block manager: which cache block belongs to whom.

A block is blank (free, contents worthless), held (by one or more sequences), or idle (free, but its
contents are in the prefix cache: the least recently used idle block is overwritten when no blank one is
left). Only integers; the tensors are the executor's.
"""

from __future__ import annotations

from collections import OrderedDict

from puna.engine.prefix import ROOT, PrefixCache, marks
from puna.engine.sequence import Sequence


class BlockManager:
    """Hands the blocks 0..n_blocks-1 of `block_size` positions each to sequences."""

    def __init__(self, n_blocks: int, block_size: int) -> None:
        self.n_blocks = n_blocks
        self.block_size = block_size
        self._prefix = PrefixCache(block_size)
        self._n_holders = [0] * n_blocks
        self._blank = list(range(n_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def n_free(self) -> int:
        return len(self._blank) + len(self._idle)

    def admit(self, seq: Sequence, reserve: int) -> bool:
        """Give `seq` blocks for all its tokens, cached ones as far as they go, and leave `reserve` blocks
        free.

        False, and nothing has changed, where too few are free.
        """
        assert not seq.blocks
        cached = self._prefix.match(seq.tokens, seq.n_reusable, seq.request.images)
        n_new = self._n_needed(len(seq.tokens)) - len(cached)
        if self.n_free - sum(not self._n_holders[block] for block in cached) < n_new + reserve:
            return False
        for block in cached:
            self._hold(block)
        seq.blocks.extend(cached)
        seq.blocks.extend([self._take() for _ in range(n_new)])
        seq.n_shared = len(cached)
        seq.parent = self._prefix.serial(cached[-1]) if cached else ROOT
        seq.n_computed = len(cached) * self.block_size
        return True

    def missing(self, seq: Sequence, n_positions: int) -> int:
        """Blocks that `seq` lacks to hold n_positions."""
        return max(0, self._n_needed(n_positions) - len(seq.blocks))

    def grow(self, seq: Sequence, n_blocks: int) -> None:
        """Give `seq` n_blocks more; the caller has seen that so many are free."""
        seq.blocks.extend([self._take() for _ in range(n_blocks)])

    def share(self, seq: Sequence) -> None:
        """Offer the blocks that `seq` has filled by now to the prefix cache.

        To be called after the step that computed them. Where another sequence has cached the same contents in
        the meantime, `seq` goes on with that block and its own is free again.
        """
        size = self.block_size
        while (seq.n_shared + 1) * size <= seq.n_computed:
            i = seq.n_shared
            own, start, end = seq.blocks[i], i * size, (i + 1) * size
            seen = marks(seq.request.images, start, end)
            kept = self._prefix.insert(seq.parent, seq.tokens[start:end], own, seen)
            if kept != own:
                self._hold(kept)
                seq.blocks[i] = kept
                self._drop(own)
            seq.parent = self._prefix.serial(kept)
            seq.n_shared += 1

    def release(self, seq: Sequence) -> None:
        """Take all blocks of `seq` back; what is full stays in the prefix cache until overwritten.

        Last block first: a block is of no use without those before it, so it must be overwritten before them.
        """
        for block in reversed(seq.blocks):
            self._drop(block)
        del seq.blocks[:]

    def _n_needed(self, n_positions: int) -> int:
        return -(-n_positions // self.block_size)

    def _take(self) -> int:
        """A block with worthless contents for one holder."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._prefix.forget(block)
        assert not self._n_holders[block]
        self._n_holders[block] = 1
        return block

    def _hold(self, block: int) -> None:
        if not self._n_holders[block]:
            del self._idle[block]
        self._n_holders[block] += 1

    def _drop(self, block: int) -> None:
        self._n_holders[block] -= 1
        assert self._n_holders[block] >= 0
        if self._n_holders[block]:
            return
        if self._prefix.holds(block):
            self._idle[block] = None
        else:
            self._blank.append(block)
