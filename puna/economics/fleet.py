"""What a fleet of one kind of accelerator can train and serve."""

from __future__ import annotations

from dataclasses import dataclass, replace

from puna.core import DoesNotFit
from puna.economics.calibrate import Factor
from puna.economics.hardware import Chip, share
from puna.economics.roofline import Deployment, bound


@dataclass(frozen=True, slots=True)
class Served:
    copies: int
    per_copy: int  # accelerators
    idle: int  # accelerators that make no whole copy
    tok_s: float  # output, all copies
    low: float
    high: float
    limit_tok_s: float


_MOST_PER_COPY = 64  # accelerators of one domain of fast links, of those that are sold


def best(d: Deployment, n: int) -> Deployment:
    """With as many accelerators a copy, of the powers of two, as let `n` of them serve most.

    The fewest that hold a model may leave no room for a batch. Raises DoesNotFit where none of them hold it.
    """
    found: tuple[float, Deployment] | None = None
    per_copy = 1
    while per_copy <= min(n, _MOST_PER_COPY):
        trial = replace(d, n=per_copy)
        try:
            served = bound(trial).output_tok_s * (n // per_copy)
        except DoesNotFit:
            served = 0.0
        if served and (found is None or served > found[0]):
            found = served, trial
        per_copy *= 2
    if found is None:
        raise DoesNotFit(f"{min(n, _MOST_PER_COPY)} x {d.chip.name} do not hold this model in {d.weights}")
    return found[1]


def serve(d: Deployment, n: int, factor: Factor, utilisation: float) -> Served:
    """`d.n` accelerators a copy, as many copies as `n` make."""
    if n < d.n:
        raise DoesNotFit(f"one copy takes {d.n} accelerators, the fleet has {n}")
    copies = n // d.n
    limit = bound(d).output_tok_s * copies
    used = limit * share("utilisation", utilisation)
    return Served(copies, d.n, n - copies * d.n, used * factor.mean, used * factor.low,
                  used * min(factor.high, 1.0), limit)  # fmt: skip


def trainable_tokens(active: float, chip: Chip, n: int, days: float, mfu: float, goodput: float) -> float:
    """Tokens that so many parameters see in that time."""
    per_second = n * chip.need("bf16_tflops") * 1e12 * share("mfu", mfu) * share("goodput", goodput)
    return per_second * days * 86400 / (6 * active)
