"""Masks of grammars, computed beside the executor's step.

Which tokens may be next is known as soon as the last ones are chosen, long before the logits are. So one
thread computes the masks of a step while the executor runs it, and the engine waits for what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil, log
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from puna.engine.sequence import Sequence

_SMALLEST = 1e-6  # seconds; costs are counted by factors of 1.5 above it
_FACTOR = log(1.5)


@dataclass(slots=True)
class GrammarStats:
    """What masks have cost since the engine was made."""

    n_masks: int = 0
    computing: float = 0.0  # seconds, in the thread beside
    waited: float = 0.0  # seconds that steps came later for it
    slowest: float = 0.0  # seconds of one mask
    n_by_cost: list[int] = field(default_factory=lambda: [0] * 48)

    def count(self, n: int, seconds: float) -> None:
        """`n` masks of one answer, for the next token and those after guesses, took that long together."""
        self.n_masks += n
        self.computing += seconds
        self.slowest = max(self.slowest, seconds / n)
        place = ceil(log(max(seconds / n / _SMALLEST, 1)) / _FACTOR)
        self.n_by_cost[min(place, len(self.n_by_cost) - 1)] += n

    def quantile(self, share: float) -> float:
        """Seconds that a mask takes at most, for that share of them; up to a factor of 1.5 too much."""
        n_wanted, n_seen = share * self.n_masks, 0
        for place, n in enumerate(self.n_by_cost):
            n_seen += n
            if n_seen >= n_wanted and n_seen:
                return float(min(_SMALLEST * 1.5**place, self.slowest))
        return 0.0


class MaskWorker:
    """The masks of one step at a time. Its thread is started by the first request that has a grammar."""

    def __init__(self) -> None:
        self.stats = GrammarStats()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._masks: dict[int, NDArray[np.uint8]] = {}  # by request id

    def begin(self, scheduled: Iterable[Sequence]) -> None:
        """Start on the masks of those whose next token this step decides; drafts must stay as they are."""
        work = [seq for seq in scheduled if seq.request.grammar is not None and _is_decided(seq)]
        if work:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="puna-masks")
            self._pending = self._pool.submit(self._compute, work)

    def wait(self) -> None:
        if self._pending is not None:
            started = perf_counter()
            pending, self._pending = self._pending, None
            pending.result()
            self.stats.waited += perf_counter() - started

    def of(self, seq: Sequence) -> NDArray[np.uint8] | None:
        """A mask for the next token and for the one after each guess; None for a request without grammar."""
        return None if seq.request.grammar is None else self._masks[seq.request.id]

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _compute(self, work: list[Sequence]) -> None:
        self._masks = {}
        for seq in work:
            grammar = seq.request.grammar
            assert grammar is not None
            started = perf_counter()
            self._masks[seq.request.id] = grammar.masks(seq.draft)
            self.stats.count(1 + len(seq.draft), perf_counter() - started)


def _is_decided(seq: Sequence) -> bool:
    """Whether the step reaches the last token, and so the choice of the next."""
    return seq.chunk.start + len(seq.chunk.tokens) >= len(seq.tokens)
