"""Rows of tokens that are trained on together: documents side by side, none of which sees another.

Shapes: B rows, N tokens of each, T = B * N.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from puna.core import BadValue
from puna.ops.images import NO_IMAGES, StepImages

IGNORED = -100  # a label that no loss counts, as torch calls it


@dataclass(frozen=True, slots=True)
class Rows:
    """What a forward pass reads. Positions count from the beginning of each document.

    `documents_BN` numbers them within a row, rising; None where each row is one document.
    """

    tokens_BN: Tensor  # int64
    positions_BN: Tensor  # int64
    documents_BN: Tensor | None = None
    images: StepImages = NO_IMAGES

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
        if self.documents_BN is None and (chunk is None or n <= chunk):
            return None
        order_N = torch.arange(n, device=self.tokens_BN.device)
        seen_BNN = (order_N[:, None] >= order_N)[None]
        if self.documents_BN is not None:
            seen_BNN = seen_BNN & (self.documents_BN[:, :, None] == self.documents_BN[:, None, :])
        if chunk is not None:
            chunks_BN = self.positions_BN // chunk
            seen_BNN = seen_BNN & (chunks_BN[:, :, None] == chunks_BN[:, None, :])
        return seen_BNN[:, None]


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
