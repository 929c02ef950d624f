"""Gross margin of each tenant and model: what the ledger charged against what the machines cost.

The cost of the machines is a whole number of nano-dollars that is shared out to the last one (largest
remainders), so that parts always sum to it; revenue is the ledger's own. Rows are those of
`puna usage --csv`. Machines cost money while they idle: the whole period is charged, not the busy seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from itertools import pairwise

from puna.core import BadFile, BadValue
from puna.economics.tables import table

NANO = Decimal(10**9)
_NEEDED = (
    "request_id", "created_at", "tenant", "model", "prompt_tokens", "cached_tokens", "output_tokens",
    "prefill_s", "decode_s", "cost_usd",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One call of the ledger."""

    request_id: str
    at: datetime
    tenant: str
    model: str
    prompt: int
    cached: int
    output: int
    work_s: float  # prefill and decode
    nano: int  # charged

    def __post_init__(self) -> None:
        if self.nano < 0:
            raise BadValue(f"call {self.request_id}: what was charged must be 0 or more, got {self.nano}")


def read_ledger(text: str, where: str) -> list[Entry]:
    """Raises BadFile for another file, a call that stands there twice, and values that make no sense."""
    names, rows = table(text, where)
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise BadFile(f"{where} must be a file of `puna usage --csv`; it lacks {', '.join(missing)}")
    found: list[Entry] = []
    seen: set[str] = set()
    for n, row in rows:
        try:
            at = datetime.fromisoformat(row["created_at"])
            entry = Entry(
                row["request_id"], at if at.tzinfo else at.replace(tzinfo=UTC), row["tenant"], row["model"],
                int(row["prompt_tokens"]), int(row["cached_tokens"]), int(row["output_tokens"]),
                float(row["prefill_s"]) + float(row["decode_s"]), _nano(row["cost_usd"]),
            )  # fmt: skip
            good = 0 <= entry.cached <= entry.prompt and entry.output >= 0 and 0 <= entry.work_s < 1e9
        except (ValueError, TypeError, InvalidOperation, BadValue):
            raise BadFile(f"{where}:{n}: {_wrong(row)}") from None
        if not good:
            raise BadFile(f"{where}:{n}: {_wrong(row)}")
        if entry.request_id in seen:
            raise BadFile(f"{where}:{n}: call {entry.request_id} stands there twice")
        seen.add(entry.request_id)
        found.append(entry)
    if not found:
        raise BadFile(f"{where} has no calls: there is no margin of nothing")
    return found


def _wrong(row: Mapping[str, str]) -> str:
    """Which field of a row is none of the ledger's."""
    try:
        datetime.fromisoformat(row["created_at"])
    except ValueError:
        return f"created_at must be a time in ISO 8601 that exists, found {row['created_at']!r:.40}"
    for name in ("prompt_tokens", "cached_tokens", "output_tokens"):
        if not (row[name].isascii() and row[name].isdecimal()):
            return f"{name} must be a whole number, 0 or more, found {row[name]!r:.40}"
    if int(row["cached_tokens"]) > int(row["prompt_tokens"]):
        n_prompt, n_cached = row["prompt_tokens"], row["cached_tokens"]
        return f"cached_tokens must be some of the {n_prompt} of the prompt, found {n_cached}"
    for name in ("prefill_s", "decode_s"):
        try:
            good = 0 <= float(row[name]) < 1e9
        except ValueError:
            good = False
        if not good:
            return f"{name} must be seconds, 0 or more, found {row[name]!r:.40}"
    return f"cost_usd must be dollars with nine digits behind the point, found {row['cost_usd']!r:.40}"


def _nano(text: str) -> int:
    value = Decimal(text) * NANO
    if value != int(value):
        raise ValueError(f"cost_usd must have at most nine digits behind the point, found {text}")
    return int(value)


def gaps(entries: Sequence[Entry], hours: float) -> list[str]:
    """A sentence for each stretch without calls that is longer than `hours`."""
    times = sorted(entry.at for entry in entries)
    return [
        f"no call between {a.isoformat()} and {b.isoformat()} ({(b - a).total_seconds() / 3600:.1f} hours)"
        for a, b in pairwise(times)
        if (b - a).total_seconds() > hours * 3600
    ]


@dataclass(frozen=True, slots=True)
class Line:
    """Nano-dollars of one tenant's calls of one model."""

    tenant: str
    model: str
    calls: int
    prompt: int
    cached: int
    output: int
    revenue: int
    cost: int

    @property
    def profit(self) -> int:
        return self.revenue - self.cost

    @property
    def usd_per_mtok(self) -> float | None:
        """What a million output tokens cost, idle time and prompts included; None without any."""
        return self.cost / self.output / 1000 if self.output else None

    @property
    def margin(self) -> float | None:
        """Share of the revenue; None without any."""
        return self.profit / self.revenue if self.revenue else None


@dataclass(frozen=True, slots=True)
class Margins:
    lines: tuple[Line, ...]
    revenue: int
    cost: int
    repriced: int  # calls that the price list given charges otherwise than the ledger did
    price_difference: int  # nano-dollars: price list less ledger


Pricing = Callable[[str, datetime, int, int, int], int]  # PriceList.cost of the server


def margins(entries: Sequence[Entry], machine_usd: Decimal, pricing: Pricing | None = None) -> Margins:
    """Machine cost is shared by seconds of work. `pricing` checks what the ledger charged; revenue stays the
    ledger's. Raises BadValue for a cost below zero or no work to share it by.
    """
    if not machine_usd.is_finite() or machine_usd < 0:
        raise BadValue(f"what the machines cost must be 0 or more, got {machine_usd}")
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.tenant, entry.model), []).append(entry)
    keys = sorted(groups)
    work = [sum(entry.work_s for entry in groups[key]) for key in keys]
    total = int((machine_usd * NANO).to_integral_value(ROUND_HALF_EVEN))
    lines = [_line(key, groups[key], cost) for key, cost in zip(keys, shared_out(total, work), strict=True)]
    repriced = difference = 0
    for entry in entries if pricing else ():
        assert pricing is not None, "there are no entries to check otherwise"
        cost = pricing(entry.model, entry.at, entry.prompt, entry.cached, entry.output)
        repriced += cost != entry.nano
        difference += cost - entry.nano
    return Margins(tuple(lines), sum(line.revenue for line in lines), total, repriced, difference)


def _line(key: tuple[str, str], mine: Sequence[Entry], cost: int) -> Line:
    def summed(name: str) -> int:
        return sum(getattr(entry, name) for entry in mine)

    tokens = (summed("prompt"), summed("cached"), summed("output"))
    return Line(*key, len(mine), *tokens, summed("nano"), cost)


def shared_out(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the weights that sum to `total` exactly, by largest remainders."""
    whole = sum(Decimal(weight) for weight in weights)
    if whole <= 0:
        raise BadValue("the ledger has no seconds of work, so that no cost can be shared by them")
    exact = [total * Decimal(weight) / whole for weight in weights]
    parts = [int(value) for value in exact]
    order = sorted(range(len(parts)), key=lambda i: exact[i] - parts[i], reverse=True)
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


def reconciled(found: Margins, totals: Mapping[str, int]) -> None:
    """Raise BadValue unless revenue by tenant is what the ledger's own sums say, to the nano-dollar."""
    mine: dict[str, int] = {}
    for line in found.lines:
        mine[line.tenant] = mine.get(line.tenant, 0) + line.revenue
    for tenant in sorted(set(mine) | set(totals)):
        a, b = mine.get(tenant, 0), totals.get(tenant, 0)
        if a != b:
            raise BadValue(f"the calls of {tenant!r} sum to {a} nano-dollars, the ledger says {b}")
