"""How the page writes numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from puna.server.tenants.limits import Limits

NONE = "\N{EN DASH}"
_WIDTH, _HEIGHT = 120, 24  # of a small plot, in units of its own


def whole(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def per_second(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f} %"


def size(n_bytes: int) -> str:
    """Decimal units, as disks have them."""
    for unit, least in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= least:
            return f"{n_bytes / least:.3g} {unit}"
    return f"{n_bytes} B"


def money(nano: int) -> str:
    return f"{nano / 1e9:,.4f}"


def clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}"


def curve(values: Sequence[float]) -> str:
    """Points of a polyline, the newest value at the right edge."""
    most = max(values, default=0.0) or 1.0
    n = max(len(values) - 1, 1)
    return " ".join(
        f"{_WIDTH * i / n:.1f},{_HEIGHT - 1 - (_HEIGHT - 2) * value / most:.1f}"
        for i, value in enumerate(values)
    )


def models(limits: Limits) -> str:
    """Names of those that a key may use."""
    return ", ".join(limits.models) if limits.models else "all"


FILTERS: dict[str, Callable[..., str]] = {
    "whole": whole,
    "per_second": per_second,
    "percent": percent,
    "size": size,
    "money": money,
    "clock": clock,
    "curve": curve,
    "models": models,
}
