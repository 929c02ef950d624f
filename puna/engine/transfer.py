"""Contents of cache blocks out of the executor and back: what a session in a file is made of.

For the engine's thread, between two steps. Who moves many blocks does so in pieces, for others not to wait.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from puna.core import Executor, Unsupported
from puna.engine.blocks import Held
from puna.engine.prefix import ROOT, Parent
from puna.engine.scheduler import Scheduler


class BlockStore(Protocol):
    """What an executor has whose blocks can be moved; core.Executor does not ask for it.

    Blocks are uint8 [blocks, bytes of a block]: block_bytes, or those of local layers, local_block_bytes.
    Equal formats say that the same tokens of the same weights give the same bytes.
    """

    cache_format: str
    block_bytes: int
    local_block_bytes: int

    def read_blocks(self, blocks: Sequence[int], *, local: bool) -> NDArray[np.uint8]: ...

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8], *, local: bool) -> None: ...


class Transfer:
    """Moves the blocks of one executor."""

    def __init__(self, executor: Executor, scheduler: Scheduler) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._blocks = scheduler.blocks
        self.block_tokens = executor.block_size  # positions of a block

    @property
    def store(self) -> BlockStore:
        """Raises Unsupported where the executor has no way to move blocks."""
        if not hasattr(self._executor, "cache_format"):
            raise Unsupported(
                "this backend has no way to write its cache to a file; load the model with backend native"
            )
        return cast(BlockStore, self._executor)

    def n_local(self, n_blocks: int) -> int:
        """How many local blocks go with a beginning of so many blocks."""
        window = self._blocks.window
        return n_blocks % (window // self.block_tokens) if window else 0

    def hold_prefix(self, tokens: array[int], root: Parent = ROOT) -> Held:
        """The beginning of `tokens` that is cached under a root; give it to let_go() in the end."""
        return self._blocks.hold_prefix(tokens, root)

    def hold_free(self, n_blocks: int) -> Held | None:
        """Blocks to write a beginning to; None where too few are free."""
        return self._blocks.hold_free(n_blocks, self.n_local(n_blocks))

    def read(self, held: Held, first: int, end: int, *, local: bool = False) -> NDArray[np.uint8]:
        """Contents of the blocks first..end-1 of `held`."""
        return self.store.read_blocks((held.local_blocks if local else held.blocks)[first:end], local=local)

    def write(self, held: Held, first: int, data: NDArray[np.uint8], *, local: bool = False) -> None:
        """Put contents into the blocks of `held` from `first` on."""
        blocks = held.local_blocks if local else held.blocks
        self.store.write_blocks(blocks[first : first + len(data)], data, local=local)

    def offer(self, tokens: array[int], held: Held, root: Parent = ROOT) -> None:
        """All of `held` is written, and belongs to `tokens`: equal prompts under that root may find it."""
        self._blocks.offer(tokens, held, root)

    def let_go(self, held: Held) -> None:
        """What is in the prefix cache stays there until it is overwritten."""
        self._blocks.let_go(held)
        self._scheduler.try_again()
