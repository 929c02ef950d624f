"""Numbers in words. The scales are the only figures in the code of this package."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import Decimal

SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
MISSING = "-"


def scaled(value: float, unit: str = "") -> str:
    """1.24 B; four digits that count."""
    for scale, letter in SCALES:
        if value >= scale:
            return f"{value / scale:.4g} {letter}{unit}"
    return f"{value:.4g}{' ' + unit if unit else ''}"


def per_million(value: Decimal | float | None) -> str:
    """Dollars for a million tokens, to a hundredth of a cent at most."""
    if value is None:
        return MISSING
    text = f"{float(value):.4f}".rstrip("0")
    whole, _, part = text.partition(".")
    return f"${whole}.{part:0<2}"


def usd(value: float) -> str:
    return f"${scaled(value)}"


def days(n: int) -> str:
    return f"{n:,} day" if n == 1 else f"{n:,} days"


def listing(names: Iterable[str]) -> str:
    """a, b and c."""
    found = list(names)
    return " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))


def age(day: date, today: date) -> str:
    return days((today - day).days)
