"""Hosts with their prices and end dates, and what it costs to host a model oneself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log
from statistics import median

from puna.brief.document import Bar, Cell, Section, Table, table
from puna.brief.facts import Facts
from puna.brief.words import MISSING, days, per_million
from puna.core import UnknownModel
from puna.economics.calibrate import measured
from puna.economics.compare import Comparison, compare, measured_speed
from puna.economics.hardware import chip
from puna.economics.prices import Listed, family, medians


def _counted(items: Iterable[Listed]) -> list[Listed]:
    return [item for item in items if item.counts]


def summary(facts: Facts) -> str:
    counted = [item for items in facts.groups.values() for item in _counted(items)]
    hosts = {item.row.provider for item in counted}
    free = sum(item.row.is_free for items in facts.groups.values() for item in items)
    if not counted:
        return "No host's price is known that holds."
    old = min(item.age_days for item in counted)
    return (
        f"{len(hosts)} hosts ask {len(counted)} prices for {len({i.row.model for i in counted})} sizes of "
        f"Llama that still hold; {free} free or unpriced rows count nowhere. The youngest price is "
        f"{days(old)} old."
    )


def _of_focus(facts: Facts) -> Sequence[Listed]:
    """Prices of the model that is looked at closely; none where the prices of a user lack it."""
    try:
        return facts.groups[family(facts.profile.focus.model, facts.rows)]
    except UnknownModel:
        return ()


def hosts(facts: Facts) -> Section:
    priced = {name: _counted(items) for name, items in facts.groups.items() if _counted(items)}
    every = [float(item.row.both) for items in priced.values() for item in items]
    bounds = min(every, default=1.0), max(every, default=1.0)
    numbers = ("hosts", "prices", "$/M in", "$/M out", "outliers")
    head = ("model", *numbers, "a million in and out, from least to most")
    rows = []
    for name, items in priced.items():
        middle = medians(items)
        assert middle is not None, "there are prices"
        both = sorted(float(item.row.both) for item in items)
        rows.append((
            name, f"{len({i.row.provider for i in items})}", f"{len(items)}", per_million(middle[0]),
            per_million(middle[1]), f"{sum('outlier' in i.flags for i in items)}", _bar(both, bounds),
        ))  # fmt: skip
    told = (
        "Medians of prices that hold on the day of the page. Free and unpriced rows, routers, and what has "
        "ended or was replaced stand in none. Marks show the middle, on one logarithmic scale.",
    )
    tables = [table(head, rows, numbers)]
    if found := _of_focus(facts):
        tables.append(_rows(found, f"Every price of {found[0].row.model}"))
    return Section("hosts", "Hosts and prices", told, tuple(tables))


def _bar(values: Sequence[float], bounds: tuple[float, float]) -> Cell:
    low, high = (log(value) for value in bounds)
    wide = high - low or 1

    def place(value: float) -> float:
        return (log(value) - low) / wide

    middle = median(values)
    text = f"{per_million(values[0])} … {per_million(middle)} … {per_million(values[-1])}"
    return Cell(text, bar=Bar(place(values[0]), place(middle), 1 - place(values[-1])))


def _rows(items: Sequence[Listed], title: str) -> Table:
    numbers = ("$/M in", "$/M out")
    head = ("host", "its name for it", *numbers, "source", "age", "flags")
    rows = [
        (
            i.row.provider, Cell(i.row.model_id, i.row.url), per_million(i.row.input),
            per_million(i.row.output), i.row.source, days(i.age_days), ", ".join(i.flags) or MISSING,
        )
        for i in items
    ]  # fmt: skip
    return table(head, rows, (*numbers, "age"), title=title)


def _ending(facts: Facts) -> list[Listed]:
    """Offers with an end date, the next first."""
    found = [i for items in facts.groups.values() for i in items if i.row.valid_to is not None]
    return sorted(found, key=lambda i: (i.row.valid_to or facts.today, i.row.provider, i.row.model_id))


def ends_summary(facts: Facts) -> str:
    ending, soon = _ending(facts), facts.profile.focus.soon_days
    over = [i for i in ending if "ended" in i.flags]
    near = [
        i for i in ending if i not in over and i.row.valid_to and (i.row.valid_to - facts.today).days <= soon
    ]
    return (
        f"{len(over)} offers have ended, {len(near)} more end within {days(soon)}, and "
        f"{len(ending) - len(over) - len(near)} later on a day that is announced."
    )


def ends(facts: Facts) -> Section:
    rows = []
    for i in _ending(facts):
        assert i.row.valid_to is not None, "it ends"
        left = (i.row.valid_to - facts.today).days
        state = Cell("ended", mark="ended") if left <= 0 else Cell(f"in {days(left)}", mark="ends")
        rows.append(
            (
                f"{i.row.valid_to}",
                state,
                i.row.model,
                i.row.provider,
                Cell(i.row.model_id, i.row.url),
                i.row.source,
            )
        )
    told = (
        "Days on which hosts end what they offer, as a source announces them. That a row vanishes from a "
        "source does not prove that a host has withdrawn the model; such rows are not counted here.",
    )
    head = ("day", "state", "model", "host", "its name for it", "source")
    return Section("ends", "End dates", told, (table(head, rows, ("day",)),))


def _compared(facts: Facts, accelerator: str, utilisation: float) -> Comparison:
    focus = facts.profile.focus
    own = chip(accelerator)
    speed = measured_speed(focus.model, accelerator)
    return compare(speed, own.rate(own.best_rate()), utilisation, _counted(_of_focus(facts)))


def _flip(use: float) -> str:
    return "never" if use > 1 else f"above {use:.0%} use"


def _fitting(facts: Facts) -> list[str]:
    """Accelerators of the focus on which somebody measured the model."""
    return [
        key for key in facts.profile.focus.accelerators if any(key == row.accelerator for row in measured())
    ]


def own_summary(facts: Facts) -> str:
    focus = facts.profile.focus
    key = _fitting(facts)[-1]
    found = [_compared(facts, key, use) for use in focus.utilisations]
    offers = found[0].offers
    if not offers:
        return f"No price of {focus.model} is known that holds, to hold one's own cost against."
    cheaper = [offer for offer in offers if offer.flip is not None]
    least = offers[0]
    flip = _flip(found[0].full_usd / least.usd)
    return (
        f"{focus.model} on {chip(key).name} costs {per_million(found[0].own_usd)} for a million tokens in "
        f"and out at {focus.utilisations[0]:.0%} use and {per_million(found[-1].own_usd)} at "
        f"{focus.utilisations[-1]:.0%}; it beats the cheapest offer ({least.provider}, "
        f"{per_million(least.usd)}) {flip}, and {len(cheaper)} of {len(offers)} offers at some use."
    )


def own(facts: Facts) -> Section:
    focus = facts.profile.focus
    uses = [f"at {use:.0%}" for use in focus.utilisations]
    head = (
        "accelerator",
        "$ an hour",
        "source of the rate",
        "output tokens/s",
        *uses,
        "beats the median offer",
    )
    rows: list[tuple[str | Cell, ...]] = []
    for key in _fitting(facts):
        chosen, kind = chip(key), chip(key).best_rate()
        cell = chosen.cells[f"{kind}_usd_h"]
        found = [_compared(facts, key, use) for use in focus.utilisations]
        offered = [offer.usd for offer in found[0].offers]
        middle = median(offered) if offered else None
        flip = f"{_flip(found[0].full_usd / middle)} ({per_million(middle)})" if middle else MISSING
        speed = measured_speed(focus.model, key)
        rows.append((
            f"{speed.n} x {chosen.name}", per_million(cell.value),
            Cell(f"{kind}: {cell.source.title} ({cell.source.date})", cell.source.url), f"{speed.tok_s:,.0f}",
            *(per_million(one.own_usd) for one in found), flip,
        ))  # fmt: skip
    told = (
        f"Dollars for a million tokens in and a million out of {focus.model}, by how much of the time the "
        "machine is used. Speeds: "
        f"{'; '.join(dict.fromkeys(measured_speed(focus.model, key).origin for key in _fitting(facts)))}. "
        "Offers are prices of hosts that hold on the day of the page; no other cost of hosting is counted.",
    )
    return Section(
        "own", "Host it yourself, or buy", told, (table(head, rows, ("$ an hour", "output tokens/s", *uses)),)
    )
