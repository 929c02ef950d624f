"""Rows of tokens that are trained on together: documents side by side, none of which sees another.

Shapes: B rows, N tokens of each, T = B * N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.core import BadValue
from puna.ops.images import NO_IMAGES, StepImages

IGNORED = -100  # a label that no loss counts, as torch calls it


@dataclass(frozen=True, slots=True)
class Keys:
    """The tokens of whole rows, whose keys this rank's tokens look at, in the order of gathering.

    Context parallelism as Llama 3 had it (arXiv 2407.21783, 3.3.2): each rank has two pieces of every row,
    one from either end, so that all have as much to do, and gathers keys and values of the others.
    """

    group: Any  # dist.ProcessGroup
    order_P: Tensor  # place in the row
    positions_BP: Tensor
    documents_BP: Tensor | None


@dataclass(frozen=True, slots=True)
class Rows:
    """What a forward pass reads. Positions count from the beginning of each document.

    `documents_BN` numbers them within a row, rising; None where each row is one document. `keys` where the
    tokens are a part of longer rows, and `order_N` their places in them.
    """

    tokens_BN: Tensor  # int64
    positions_BN: Tensor  # int64
    documents_BN: Tensor | None = None
    images: StepImages = NO_IMAGES
    order_N: Tensor | None = None
    keys: Keys | None = None

    @property
    def tokens_T(self) -> Tensor:
        return self.tokens_BN.flatten()

    @property
    def positions_T(self) -> Tensor:
        return self.positions_BN.flatten()

    @property
    def adapters(self) -> tuple[()]:
        """Adapters of a batch belong to serving; those that are trained are part of the model."""
        return ()

    def seen(self, chunk: int | None) -> Tensor | None:
        """Which tokens each may look at, bool [B, 1, N, N]; None for all before it.

        With `chunk` only those of its own chunk of so many positions.
        """
        n = self.tokens_BN.shape[1]
        order_N, keys = self.order_N, self.keys
        if order_N is None or keys is None:
            if self.documents_BN is None and (chunk is None or n <= chunk):
                return None
            order_N = torch.arange(n, device=self.tokens_BN.device)
            keys = Keys(None, order_N, self.positions_BN, self.documents_BN)
        seen_BNP = (order_N[:, None] >= keys.order_P)[None]
        if self.documents_BN is not None and keys.documents_BP is not None:
            seen_BNP = seen_BNP & (self.documents_BN[:, :, None] == keys.documents_BP[:, None, :])
        if chunk is not None:
            own_BN, others_BP = self.positions_BN // chunk, keys.positions_BP // chunk
            seen_BNP = seen_BNP & (own_BN[:, :, None] == others_BP[:, None, :])
        return seen_BNP[:, None]

    def part(self, rank: int, n_ranks: int, group: Any) -> Rows:
        """What one of `n_ranks` ranks has of the rows. Raises BadValue unless they can be shared out."""
        parts = [
            _pieces(self.tokens_BN.shape[1], i, n_ranks).to(self.tokens_BN.device) for i in range(n_ranks)
        ]
        own_N, all_P = parts[rank], torch.cat(parts)
        documents = self.documents_BN
        keys = Keys(
            group, all_P, self.positions_BN[:, all_P], None if documents is None else documents[:, all_P]
        )
        return Rows(
            self.tokens_BN[:, own_N],
            self.positions_BN[:, own_N],
            None if documents is None else documents[:, own_N],
            order_N=own_N,
            keys=keys,
        )


def _pieces(n_tokens: int, rank: int, n_ranks: int) -> Tensor:
    """Places of a rank's two pieces of a row."""
    if n_tokens % (2 * n_ranks):
        raise BadValue(
            f"rows must be a multiple of {2 * n_ranks} tokens for {n_ranks} ranks of context, got {n_tokens}"
        )
    size = n_tokens // (2 * n_ranks)
    last = 2 * n_ranks - 1 - rank
    return torch.cat([torch.arange(i * size, (i + 1) * size) for i in (rank, last)])


def rows_of(tokens_BN: Tensor, lengths: list[list[int]] | None = None) -> Rows:
    """Rows of one document each, or with `lengths` of more. Raises BadValue unless they add up."""
    n_rows, n = tokens_BN.shape
    if lengths is None:
        positions = torch.arange(n, device=tokens_BN.device).expand(n_rows, n)
        return Rows(tokens_BN, positions)
    if len(lengths) != n_rows or any(sum(row) != n for row in lengths):
        raise BadValue(f"lengths must add up to {n} tokens in each of {n_rows} rows, got {lengths!r:.80}")
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    documents = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    )
    return Rows(tokens_BN, positions.to(tokens_BN.device), documents.to(tokens_BN.device))
