"""Learning rates as functions of the step alone, so that nothing of them has to be kept in a checkpoint.

cosine   LLaMA 1 (arXiv 2302.13971): half a cosine from the peak to `floor` times it
linear   a straight line to `floor` times the peak; with floor 0 Llama 3's annealing (arXiv 2407.21783, 3.4.3)
wsd      warmup, stable, decay (Hu et al. 2024, arXiv 2404.06395): the peak until the last `decay` steps
constant the peak
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Literal

from pydantic import with_config

from puna.core import BadValue
from puna.train.strict import STRICT

Name = Literal["cosine", "linear", "wsd", "constant"]


@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class Schedule:
    """Raises BadValue for values that make no sense."""

    peak: float  # learning rate
    name: Name = "cosine"
    warmup: int = 0  # steps from 0 to the peak, in a straight line
    floor: float = 0.1  # of the peak, at the end
    decay: int | None = None  # steps of wsd's decay
    steps: int | None = None  # that the shape is made for, where it is not the run's own length

    def __post_init__(self) -> None:
        if not 0 < self.peak < float("inf"):
            raise BadValue(f"peak must be a learning rate above 0, got {self.peak}")
        if self.warmup < 0 or not 0 <= self.floor <= 1:
            raise BadValue(f"warmup must be 0 or more, floor from 0 to 1; got {self.warmup} and {self.floor}")
        if (self.name == "wsd") != (self.decay is not None) or (self.decay is not None and self.decay < 1):
            raise BadValue(
                f"decay is the number of wsd's last steps, 1 or more; got {self.name}, {self.decay}"
            )

    def check(self, n_steps: int) -> None:
        """Raise BadValue where a run of so many steps has no room for the shape."""
        total = self.steps or n_steps
        needed = self.warmup + (self.decay or 0)
        if needed > total:
            raise BadValue(f"warmup and decay take {needed} steps, but there are only {total}")

    def rate(self, step: int, n_steps: int) -> float:
        """The learning rate of step number `step`, from 0, of a run of `n_steps`."""
        total = self.steps or n_steps
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.name == "constant":
            return self.peak
        if self.name == "wsd":
            assert self.decay is not None
            return self.peak * self._down((step - (total - self.decay) + 1) / self.decay)
        part = (step - self.warmup + 1) / max(1, total - self.warmup)
        if self.name == "linear":
            return self.peak * self._down(part)
        share = (1 + cos(pi * min(1.0, part))) / 2
        return self.peak * (self.floor + (1 - self.floor) * share)

    def _down(self, part: float) -> float:
        """From 1 to the floor in a straight line, `part` of the way."""
        return 1 - (1 - self.floor) * min(1.0, max(0.0, part))
