"""Block manager: which cache block belongs to whom.

A block is blank (free, contents worthless), held (by one or more sequences), or idle (free, but its
contents are in the prefix cache: the least recently used idle block is overwritten when no blank one is
left). Only integers; the tensors are the executor's.

Where layers with chunked attention have blocks of their own (core.Executor.local_window), a sequence has a
second, short block table: it begins with the chunk of attention that its next position lies in. What lies
before was given back, so that only the other layers grow with the sequence.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass

from puna.engine.prefix import LocalPrefixes, Parent, PrefixCache, marks
from puna.engine.sequence import Sequence


class BlockPool:
    """Hands out the blocks 0..n_blocks-1; `cached` says which have contents worth keeping while free."""

    def __init__(self, n_blocks: int, cached: PrefixCache | LocalPrefixes) -> None:
        self.n_blocks = n_blocks
        self._cached = cached
        self._n_holders = [0] * n_blocks
        self._blank = list(range(n_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def n_free(self) -> int:
        return len(self._blank) + len(self._idle)

    @property
    def n_idle(self) -> int:
        return len(self._idle)

    def is_free(self, block: int) -> bool:
        return not self._n_holders[block]

    def is_held_once(self, block: int) -> bool:
        return self._n_holders[block] == 1

    def take(self, n: int) -> list[int]:
        """Blocks with worthless contents for one holder; the caller has seen that so many are free."""
        return [self._take() for _ in range(n)]

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._cached.forget(block)
        assert not self._n_holders[block]
        self._n_holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        if not self._n_holders[block]:
            del self._idle[block]
        self._n_holders[block] += 1

    def drop(self, block: int) -> None:
        self._n_holders[block] -= 1
        assert self._n_holders[block] >= 0
        if self._n_holders[block]:
            return
        if self._cached.holds(block):
            self._idle[block] = None
        else:
            self._blank.append(block)


@dataclass(slots=True)
class Held:
    """Blocks that belong to no sequence, but must stay as they are."""

    blocks: list[int]
    local_blocks: list[int]  # that go with the last ones of `blocks`


class BlockManager:
    """Gives sequences blocks of `block_size` positions: `n_blocks` in all and, with a `window`, as many of
    their own for layers whose attention goes back to a multiple of `window` only.

    `n_step` is the most tokens of a sequence that one step runs. A sequence then needs local blocks for
    `window` + n_step positions at most, and the pool has to hold so many.
    """

    def __init__(
        self, n_blocks: int, block_size: int, *, n_local_blocks: int = 0, window: int = 0, n_step: int = 0
    ) -> None:
        self.block_size = block_size
        self.window = window
        self._prefix = PrefixCache(block_size)
        self._local_prefix = LocalPrefixes()
        self.n_transfers = 0  # that hold blocks: until they let go, not even a sequence alone may fit
        self._pool = BlockPool(n_blocks, self._prefix)
        self._local = BlockPool(n_local_blocks, self._local_prefix)
        self._n_reach = self.n_needed(window + n_step)  # local blocks of one sequence at most
        assert not window or (window % block_size == 0 and self._n_reach <= n_local_blocks)

    @property
    def n_free(self) -> int:
        return self._pool.n_free

    def figures(self) -> dict[str, int]:
        """What stats.EngineStats says of blocks. Safe in any thread."""
        pool = self._pool
        return {
            "kv_blocks": pool.n_blocks,
            "kv_blocks_used": pool.n_blocks - pool.n_free,
            "kv_blocks_cached": pool.n_idle,
            "kv_block_tokens": self.block_size,
        }

    @property
    def n_free_local(self) -> int:
        return self._local.n_free

    def admit(self, seq: Sequence, reserve: int) -> bool:
        """Give `seq` blocks for all its tokens, cached ones as far as they go, and leave `reserve` blocks
        free. Of local blocks it gets as many as it will hold at once.

        False, and nothing has changed, where too few are free.
        """
        assert not seq.blocks
        cached, local_cached, origin, n_new, n_local = self._wanted(seq)
        if _n_left(self._pool, cached) < n_new + reserve:
            return False
        if self.window and _n_left(self._local, local_cached) < n_local + reserve:
            return False
        for pool, blocks, known, n in (
            (self._pool, seq.blocks, cached, n_new),
            (self._local, seq.local_blocks, local_cached, n_local),
        ):
            for block in known:
                pool.hold(block)
            blocks.extend(known)
            blocks.extend(pool.take(n))
        seq.n_shared = len(cached)
        seq.parent = self._prefix.serial(cached[-1]) if cached else seq.root
        seq.n_computed = len(cached) * self.block_size
        seq.chunk.local_start = origin
        return True

    def lacking(self, seq: Sequence, reserve: int, *, with_free: bool = True) -> tuple[int, int]:
        """How many blocks, and local ones, are too few for admit(), or would be if none were free."""
        cached, local_cached, _, n_new, n_local = self._wanted(seq)
        n_lacking, n_lacking_local = n_new + reserve, n_local + reserve if self.window else 0
        if with_free:
            n_lacking -= _n_left(self._pool, cached)
            n_lacking_local -= _n_left(self._local, local_cached)
        return n_lacking, n_lacking_local

    def _wanted(self, seq: Sequence) -> tuple[list[int], list[int], int, int, int]:
        """Blocks and local ones that hold the beginning of `seq`, the first position that local layers see
        after it, and how many blocks and local ones there must be beside them."""
        cached = self._prefix.match(seq.tokens, seq.n_reusable, seq.images, seq.root)
        local_cached: list[int] = []
        if self.window:
            cached, local_cached = self._with_local(cached)
        origin = self._origin(len(cached) * self.block_size)
        n_new = self.n_needed(len(seq.tokens)) - len(cached)
        n_local = self._n_covered(len(seq.tokens) - origin) - len(local_cached) if self.window else 0
        return cached, local_cached, origin, n_new, n_local

    def n_own(self, seq: Sequence) -> tuple[int, int]:
        """Blocks, and local ones, that only `seq` holds."""
        pools = ((self._pool, seq.blocks), (self._local, seq.local_blocks))
        n, n_local = (sum(pool.is_held_once(block) for block in table) for pool, table in pools)
        return n, n_local

    def _with_local(self, cached: list[int]) -> tuple[list[int], list[int]]:
        """As many of the cached blocks as have what local layers see behind them, and those local blocks.

        At a multiple of the window they see nothing.
        """
        n_window = self.window // self.block_size
        begin = len(cached) // n_window * n_window
        known: list[int] = []
        for block in cached[begin:]:
            local = self._local_prefix.block(self._prefix.serial(block))
            if local is None:
                break
            known.append(local)
        return cached[: begin + len(known)], known

    def hold_prefix(self, tokens: array[int], root: Parent) -> Held:
        """The cached blocks of a beginning of `tokens` under `root`, kept until let_go()."""
        cached, local_cached = self._prefix.match(tokens, len(tokens), root=root), list[int]()
        if self.window:
            cached, local_cached = self._with_local(cached)
        for pool, blocks in ((self._pool, cached), (self._local, local_cached)):
            for block in blocks:
                pool.hold(block)
        self.n_transfers += 1
        return Held(cached, local_cached)

    def hold_free(self, n_blocks: int, n_local: int) -> Held | None:
        """Blocks to be filled, kept until let_go(); None, and nothing has changed, where too few are free."""
        if n_blocks > self.n_free or n_local > self.n_free_local:
            return None
        self.n_transfers += 1
        return Held(self._pool.take(n_blocks), self._local.take(n_local))

    def offer(self, tokens: array[int], held: Held, root: Parent) -> None:
        """Let the prefix cache have what `held` was filled with: whole blocks of `tokens` under `root`."""
        parent, size = root, self.block_size
        n_without_local = len(held.blocks) - len(held.local_blocks)
        for i, block in enumerate(held.blocks):
            parent = self._prefix.serial(
                self._prefix.insert(parent, tokens[i * size : (i + 1) * size], block)
            )
            if i >= n_without_local:
                self._local_prefix.insert(parent, held.local_blocks[i - n_without_local])

    def let_go(self, held: Held) -> None:
        """Last block first, as in release()."""
        self.n_transfers -= 1
        for pool, blocks in ((self._pool, held.blocks), (self._local, held.local_blocks)):
            for block in reversed(blocks):
                pool.drop(block)

    def missing(self, seq: Sequence, n_positions: int) -> int:
        """Blocks that `seq` lacks to hold n_positions."""
        return max(0, self.n_needed(n_positions) - len(seq.blocks))

    def missing_local(self, seq: Sequence, n_positions: int) -> int:
        """Local blocks that `seq` lacks to run up to n_positions in the next step."""
        if not self.window:
            return 0
        return max(0, self.n_needed(n_positions - seq.chunk.local_start) - len(seq.local_blocks))

    def grow(self, seq: Sequence, n_blocks: int, n_local: int = 0) -> None:
        """Give `seq` so many blocks more; the caller has seen that they are free."""
        seq.blocks.extend(self._pool.take(n_blocks))
        seq.local_blocks.extend(self._local.take(n_local))

    def advance(self, seq: Sequence) -> bool:
        """Offer the blocks that `seq` has filled by now to the prefix cache, and take back local ones that
        its next position does not see: whether there were any.

        To be called after the step that computed them. Where another sequence has cached the same contents in
        the meantime, `seq` goes on with that block and its own is free again.
        """
        size = self.block_size
        while (seq.n_shared + 1) * size <= seq.n_computed:
            i = seq.n_shared
            start, end = i * size, (i + 1) * size
            seen = marks(seq.images, start, end)
            kept = self._prefix.insert(seq.parent, seq.tokens[start:end], seq.blocks[i], seen)
            _replace(self._pool, seq.blocks, i, kept)
            seq.parent = self._prefix.serial(kept)
            if self.window:
                j = i - seq.chunk.local_start // size
                kept = self._local_prefix.insert(seq.parent, seq.local_blocks[j])
                _replace(self._local, seq.local_blocks, j, kept)
            seq.n_shared += 1
        return self._leave_behind(seq)

    def _leave_behind(self, seq: Sequence) -> bool:
        origin = self._origin(seq.n_computed)
        n = (origin - seq.chunk.local_start) // self.block_size
        if n:
            for block in reversed(seq.local_blocks[:n]):
                self._local.drop(block)
            del seq.local_blocks[:n]
            seq.chunk.local_start = origin
        return n > 0

    def release(self, seq: Sequence) -> None:
        """Take all blocks of `seq` back; what is full stays in the prefix cache until overwritten.

        Last block first: a block is of no use without those before it, so it must be overwritten before them.
        """
        for pool, blocks in ((self._pool, seq.blocks), (self._local, seq.local_blocks)):
            for block in reversed(blocks):
                pool.drop(block)
            del blocks[:]
        seq.chunk.local_start = 0

    def _origin(self, position: int) -> int:
        """The first position that local layers see from `position`; 0 where there are no such layers."""
        return position // self.window * self.window if self.window else 0

    def n_needed(self, n_positions: int) -> int:
        """Blocks for so many positions."""
        return -(-n_positions // self.block_size)

    def _n_covered(self, n_positions: int) -> int:
        return min(self.n_needed(n_positions), self._n_reach)


def _n_left(pool: BlockPool, cached: list[int]) -> int:
    """Blocks that are free once `cached` ones are held."""
    return pool.n_free - sum(pool.is_free(block) for block in cached)


def _replace(pool: BlockPool, table: array[int], i: int, kept: int) -> None:
    """Let a table go on with a block of the same contents."""
    own = table[i]
    if kept != own:
        pool.hold(kept)
        table[i] = kept
        pool.drop(own)
