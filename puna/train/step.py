"""One step: forward and backward over all micro-batches of all ranks, then the optimizer, once.

The loss is the sum over all labels of the step divided by their number, wherever they lie: a step of N rows
is the same step in one micro-batch, in N, and on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
import torch.distributed as dist
from torch import Tensor

from puna.core import BadInput
from puna.train.model.loss import Sums
from puna.train.model.module import Llama
from puna.train.model.rows import IGNORED, Rows
from puna.train.optim.build import Optimizers, clip


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that go through the model at once, and what is to be learnt at each token."""

    rows: Rows
    labels_BN: Tensor  # int64, IGNORED where nothing is

    @property
    def n_labels(self) -> int:
        return int((self.labels_BN != IGNORED).sum())


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step did, the same on every rank."""

    loss: float  # nats a label
    grad_norm: float  # before clipping
    n_labels: int
    rate: float
    is_skipped: bool  # the loss or the gradient was no number: nothing was changed


class Stepper:
    """A model with its optimizers."""

    def __init__(
        self,
        model: Llama,
        optimizers: Optimizers,
        *,
        n_steps: int,
        dtype: torch.dtype = torch.float32,
        most_norm: float = 1.0,
        z_loss: float = 0.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`group` has the ranks whose batches differ; None where one process has all of the batch. `z_loss`
        is the weight of that of PaLM (arXiv 2204.02311)."""
        self.model = model
        self.optimizers = optimizers
        self.n_steps = n_steps
        self._dtype = dtype
        self._most_norm = most_norm
        self._z_loss = z_loss
        self._group = group

    def step(self, number: int, batches: Sequence[Batch]) -> Taken:
        """Take step `number` with this rank's micro-batches. Raises BadInput where nothing is learnt."""
        device = batches[0].labels_BN.device
        n_labels = int(self._summed(torch.tensor(sum(b.n_labels for b in batches), device=device)))
        if not n_labels:
            raise BadInput(f"step {number} has no label: every token of its rows is masked; inspect the data")
        rate = self.optimizers.set_rate(number, self.n_steps)
        total = torch.zeros((), device=device)
        for batch in batches:
            total += self._backward(batch, n_labels)
        norm = clip(self.model.parameters(), self._most_norm)
        loss = float(self._summed(total)) / n_labels
        is_bad = not (isfinite(loss) and isfinite(float(norm)))
        if not is_bad:
            self.optimizers.step()
        self.optimizers.zero_grad()
        return Taken(loss, float(norm), n_labels, rate, is_bad)

    def _backward(self, batch: Batch, n_labels: int) -> Tensor:
        """Add this micro-batch's share of the step's gradient -> its loss, summed over labels."""
        sums: Sums = self.model(batch.rows, batch.labels_BN.flatten(), self._dtype)
        torch.autograd.backward((sums.loss + self._z_loss * sums.z_loss) / n_labels)
        return sums.loss.detach()

    def _summed(self, value: Tensor) -> Tensor:
        if self._group is not None:
            dist.all_reduce(value, group=self._group)
        return value
