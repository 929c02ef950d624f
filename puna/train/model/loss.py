"""The loss of tokens. Sums, not means: what they are divided by is the number of labels of the whole step.

So a batch of N is the same step as N batches of one, on one rank or on many.

Shapes: T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from puna.train.model.rows import IGNORED

_CHUNK = 1024  # tokens whose logits are in memory at a time


class Sums(NamedTuple):
    """Over the labels that count."""

    loss: Tensor  # nats, float32
    z_loss: Tensor  # squares of log-normalizers (Chowdhery et al. 2022, arXiv 2204.02311)


def cross_entropy(
    x_TD: Tensor, labels_T: Tensor, logits: Callable[[Tensor], Tensor], chunk: int = _CHUNK
) -> Sums:
    """Of the labels other than IGNORED, `chunk` tokens at a time: neither logits nor their gradients of more
    are ever in memory, as each part is computed again on the way back."""
    parts = [
        checkpoint(_of_part, x, labels, logits, use_reentrant=False)
        for x, labels in zip(torch.split(x_TD, chunk), torch.split(labels_T, chunk), strict=True)
    ]
    losses, squares = zip(*parts, strict=True)
    return Sums(torch.stack(losses).sum(), torch.stack(squares).sum())


def _of_part(x_TD: Tensor, labels_T: Tensor, logits: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    y_TV = logits(x_TD).float()
    loss = F.cross_entropy(y_TV, labels_T, ignore_index=IGNORED, reduction="sum")
    normalizers_T = y_TV.logsumexp(-1)
    return loss, (normalizers_T.square() * (labels_T != IGNORED)).sum()
