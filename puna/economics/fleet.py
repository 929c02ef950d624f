"""What a fleet of one kind of accelerator can train and serve."""

from __future__ import annotations

from dataclasses import dataclass

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


def smallest(d: Deployment, most: int) -> Deployment:
    """On as few accelerators as hold it, by powers of two. Raises DoesNotFit."""
    n = 1
    while n <= most:
        trial = Deployment(
            d.config, d.chip, n, d.weights, d.cache, d.prompt, d.cached, d.output, d.batch,
            d.memory_fraction, d.link_gb_s,
        )  # fmt: skip
        try:
            bound(trial)
        except DoesNotFit:
            n *= 2
            continue
        return trial
    raise DoesNotFit(f"{most} x {d.chip.name} do not hold this model in {d.weights}")


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
