"""Dollars for a million tokens, from a speed, an hourly rate and how much of the time the machine is busy.

Every figure says what it is divided by: "output" charges all of a request to its answer, "total" spreads it
over prompt and answer, "prefill", "cached" and "decode" split it by what each would take alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puna.core import BadValue
from puna.economics.hardware import positive, share
from puna.economics.roofline import Bound

DENOMINATORS = {
    "output": "all of the cost over output tokens; prompts ride along",
    "total": "all of the cost over prompt and output tokens",
    "prefill": "the part of the cost that computing prompts takes, over prompt tokens that were computed",
    "cached": "the part of the cost that reading the prefix cache takes, over prompt tokens found there",
    "decode": "the part of the cost that decoding takes, over output tokens",
}


def usd_per_mtok(tok_s: float, usd_h: float, n: int = 1, utilisation: float = 1.0) -> float:
    """Dollars for a million of the tokens that `tok_s` counts, on `n` accelerators at `usd_h` each.

    `tok_s` is of all of them together. Raises BadValue for what is not above 0.
    """
    positive("tokens per second", tok_s)
    positive("the hourly rate", usd_h)
    if n < 1:
        raise BadValue(f"the number of accelerators must be 1 or more, got {n}")
    return usd_h * n * 1e6 / (tok_s * 3600 * share("utilisation", utilisation))


@dataclass(frozen=True, slots=True)
class Money:
    """What an hour costs and how much of it is used."""

    usd_h: float  # of one accelerator
    n: int  # accelerators, all copies together
    utilisation: float = 1.0

    def __post_init__(self) -> None:
        usd_per_mtok(1.0, self.usd_h, self.n, self.utilisation)

    @property
    def usd_used_s(self) -> float:
        """Dollars of a second that does work, with the idle ones it has to pay for."""
        return self.usd_h * self.n / 3600 / self.utilisation


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars per million tokens, by the names of DENOMINATORS; None where there are no such tokens."""

    output: float
    total: float
    prefill: float | None
    cached: float | None
    decode: float
    request: float  # dollars of one request


def cost(limit: Bound, output_tok_s: float, money: Money) -> Cost:
    """Of requests as those of `limit`, at a speed that an engine reaches on one copy of the model.

    The speed is at most that of the bound. Raises BadValue.
    """
    d = limit.deployment
    copies = money.n / d.n
    if output_tok_s > limit.output_tok_s * (1 + 1e-9):
        raise BadValue(
            f"{output_tok_s:,.0f} output tokens/s are more than the {limit.output_tok_s:,.0f} that "
            f"{d.n} x {d.chip.name} can do with this model: check formats, lengths and accelerator"
        )
    one = d.output / positive("output tokens per second", output_tok_s) * money.usd_used_s / copies
    parts = limit.shares()

    def each(part: str, tokens: int) -> float | None:
        return one * parts[part] / tokens * 1e6 if tokens else None

    decode = each("decode", d.output)
    assert decode is not None, "a deployment has output"
    return Cost(
        one / d.output * 1e6,
        one / (d.prompt + d.output) * 1e6,
        each("prefill", d.prompt - d.cached),
        each("cached", d.cached),
        decode,
        one,
    )


def against_utilisation(limit: Bound, output_tok_s: float, money: Money) -> list[tuple[float, float]]:
    """(utilisation, dollars per million output tokens) from 5 % to 100 %."""
    points = [n / 100 for n in range(5, 101, 5)]
    return [(u, cost(limit, output_tok_s, Money(money.usd_h, money.n, u)).output) for u in points]


@dataclass(frozen=True, slots=True)
class Point:
    """One way to run: how fast an answer comes, and what it costs."""

    batch: int
    user_tok_s: float
    usd_per_mtok: float  # output


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both speed and cost, slowest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.user_tok_s, p.usd_per_mtok)):
        if not best or point.usd_per_mtok < best[-1].usd_per_mtok:
            best.append(point)
    return best[::-1]
