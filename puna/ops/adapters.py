"""Low-rank adapters as a kind of weight, and which rows of a step have which (Hu et al. 2021,
arXiv 2106.09685).

Shapes: E outputs, D inputs, A rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from puna.core import Batch


class LowRank(NamedTuple):
    """What an adapter adds to one matrix: scale * up (down x). Arrays or tensors, as the ops have them."""

    down_AD: Any
    up_EA: Any
    scale: float


@dataclass(slots=True, eq=False)
class Adaptable:
    """A matrix of any kind, and beside it what adapters add to it, by the numbers that requests have."""

    w_ED: Any
    adapters: dict[int, LowRank] = field(default_factory=dict)


AdapterRows = tuple[tuple[int, slice], ...]  # number of an adapter, rows of the step


def adapter_rows(batch: Batch) -> AdapterRows:
    """The rows of every chunk that has an adapter."""
    found: list[tuple[int, slice]] = []
    row = 0
    for chunk in batch.chunks:
        end = row + len(chunk.tokens)
        if chunk.adapter:
            found.append((chunk.adapter, slice(row, end)))
        row = end
    return tuple(found)
