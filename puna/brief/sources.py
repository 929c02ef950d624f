"""Where every figure is from, how old it is, and what of it is stale."""

from __future__ import annotations

from puna.brief.document import Cell, Section, table
from puna.brief.facts import Facts
from puna.brief.words import age, days
from puna.economics.calibrate import measured
from puna.economics.hardware import FRESH_DAYS, Source, chips
from puna.economics.training import reported, totals

_PRICES, _RATES, _CHIPS = "prices", "hourly rates and purchase prices", "accelerators"
_PERISHABLE = (_PRICES, _RATES)


def _all(facts: Facts) -> list[tuple[str, Source]]:
    """What for, and the source: each pair once, in the order of the page."""
    found = [("licences", Source(one.name, one.read, one.source)) for one in facts.agreements.values()]
    found += [(_PRICES, Source(row.source, row.fetched)) for row in facts.rows]
    cells = [item for own in chips().values() for item in own.cells.items()]
    found += [(_RATES if "usd" in name else _CHIPS, cell.source) for name, cell in cells]
    found += [("measured speeds", row.source) for row in measured()]
    found += [("training", run.source) for run in reported().values()]
    found += [("training", total.source) for total in totals().values()]
    found += [("labs", facts.profile.labs_source)]
    found += [("claims", source) for source in facts.profile.sources.values()]
    return list(dict.fromkeys(found))


def stale(facts: Facts) -> list[str]:
    """A sentence for each kind of price and rate with sources that are too old to be believed."""
    notes = []
    for kind in _PERISHABLE:
        old = [
            one for what, one in _all(facts) if what == kind and (facts.today - one.date).days > FRESH_DAYS
        ]
        if old:
            names = "; ".join(f"{one.title} ({age(one.date, facts.today)})" for one in old)
            notes.append(f"More than {days(FRESH_DAYS)} old, {kind}: {names}.")
    return notes


def sources(facts: Facts) -> Section:
    rows = []
    for what, source in _all(facts):
        is_old = what in _PERISHABLE and (facts.today - source.date).days > FRESH_DAYS
        rows.append((
            what, Cell(source.title, source.url), f"{source.date}",
            Cell(age(source.date, facts.today), mark="stale" if is_old else ""), source.note or "-",
        ))  # fmt: skip
    told = (
        f"Each with the day on which it was true or read; prices and rates older than {days(FRESH_DAYS)} are "
        "marked. Nothing was fetched to make this page.",
    )
    head = ("for", "source", "of", "age", "note")
    return Section("sources", "Sources", told, (table(head, rows, ("of", "age"), ("source", "note")),))
