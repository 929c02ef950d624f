"""Accelerators: what they can do and cost, as a dated table with a source in every cell, and hourly rates.

Peaks are dense, without sparsity. Any cell can be overruled; a cell that the table lacks is never guessed.
Not here: how fast a model runs on them (`roofline.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.resources import files
from math import expm1, isfinite, log1p
from typing import Any

from puna.core import BadFile, BadValue, UnknownOption, closest

CURRENCY = "USD"
FRESH_DAYS = 90  # a price that is older is flagged
CELLS = (
    "bf16_tflops", "fp8_tflops", "fp4_tflops", "int8_tops", "memory_gb", "bandwidth_tb_s", "watts",
    "all_in_kw", "own_usd_h", "neocloud_usd_h", "rent_3y_usd_h", "rent_usd_h", "rent_low_usd_h",
    "rent_high_usd_h", "buy_low_usd", "buy_high_usd",
)  # fmt: skip
RATES = ("rent_3y", "rent", "rent_low", "rent_high", "own", "neocloud")  # cells that are hourly rates
_OVERRULED = "your own value"


@dataclass(frozen=True, slots=True)
class Source:
    title: str
    date: date  # on which it was true
    url: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    value: float
    source: Source

    def age(self, today: date) -> int:
        """Days; 0 for what the user said."""
        return max((today - self.source.date).days, 0)


@dataclass(frozen=True, slots=True)
class Chip:
    """One accelerator. `get` is None for a cell that nobody stated."""

    key: str
    name: str
    cells: Mapping[str, Cell] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        cell = self.cells.get(name)
        return None if cell is None else cell.value

    def need(self, name: str) -> float:
        """Raises BadValue with the remedy where the table has no such cell."""
        value = self.get(name)
        if value is None:
            raise BadValue(f"no source states {name} of {self.name}; give your own with --set {name}=VALUE")
        return value

    def rate(self, kind: str) -> float:
        """Dollars an hour of one of RATES; raises BadValue with those that are known."""
        if kind not in RATES:
            raise BadValue(f"a rate is one of {', '.join(RATES)}, got {kind!r}{closest(kind, RATES)}")
        value = self.get(f"{kind}_usd_h")
        if value is None:
            known = [name for name in RATES if self.get(f"{name}_usd_h") is not None]
            others = f"known are {', '.join(known)}" if known else "none is known"
            raise BadValue(f"no source states the rate {kind!r} of {self.name}: {others}; give dollars")
        return value

    def best_rate(self) -> str:
        """The kind of rate for who does not say: three years' rent, else on demand. Raises BadValue."""
        for kind in ("rent_3y", "rent"):
            if self.get(f"{kind}_usd_h") is not None:
                return kind
        raise BadValue(f"no source states what {self.name} costs an hour; give --rate DOLLARS")

    def stale(self, names: Sequence[str], today: date) -> list[str]:
        """A sentence for each of these cells that is older than FRESH_DAYS."""
        return [
            f"{name} of {self.name} is {cell.age(today)} days old ({cell.source.title}, {cell.source.date})"
            for name in names
            if (cell := self.cells.get(name)) is not None and cell.age(today) > FRESH_DAYS
        ]

    def with_values(self, values: Mapping[str, float], today: date) -> Chip:
        """The chip with cells overruled. Raises UnknownOption and BadValue."""
        mine = Source(_OVERRULED, today)
        cells = dict(self.cells)
        for name, value in values.items():
            if name not in CELLS:
                raise UnknownOption(f"an accelerator has no cell {name!r}{closest(name, CELLS)}")
            cells[name] = Cell(positive(name, value), mine)
        return Chip(self.key, self.name, cells)


def positive(name: str, value: float, *, zero: bool = False) -> float:
    """The value, if it is finite and above zero (or zero, where that makes sense); else BadValue."""
    if not isfinite(value) or value < 0 or (value == 0 and not zero):
        raise BadValue(f"{name} must be a number {'from' if zero else 'above'} 0, got {value:g}")
    return value


def share(name: str, value: float) -> float:
    """The value, if it is above 0 and at most 1; else BadValue."""
    if not 0 < value <= 1:
        raise BadValue(f"{name} must be above 0 and at most 1, got {value:g}")
    return value


@cache
def chips() -> dict[str, Chip]:
    """The shipped table, by key."""
    return read_chips(data_text("accelerators.json"), "the shipped table of accelerators")


def chip(key: str) -> Chip:
    """Raises UnknownOption with the closest key."""
    table = chips()
    if key.lower() not in table:
        known = list(table)
        raise UnknownOption(
            f"the table has no accelerator {key!r}{closest(key.lower(), known)}; it has {', '.join(known)}"
        )
    return table[key.lower()]


def read_chips(text: str, where: str) -> dict[str, Chip]:
    """A table in the form of the shipped one. Raises BadFile with what is wrong."""
    content = load_json(text, where)
    if content.get("currency") != CURRENCY:
        raise BadFile(f"{where} must be in {CURRENCY}, found {content.get('currency')!r}: convert it first")
    sources = read_sources(content, where)
    found = {}
    for key, entry in entries(content, "accelerators", where).items():
        cells = {}
        for name, cell in entries(entry, "cells", f"{where}: {key}").items():
            place = f"{where}: {key}: {name}"
            if name not in CELLS:
                raise BadFile(f"{place} is no cell{closest(name, CELLS)}")
            source, value = cell.get("source"), cell.get("value")
            if source not in sources:
                raise BadFile(f"{place} must name one of the file's sources, found {source!r}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise BadFile(f"{place} must be a number above 0, found {value!r}")
            cells[name] = Cell(float(value), sources[source])
        found[key] = Chip(key, str(entry.get("name", key)), cells)
    return found


def read_sources(content: Mapping[str, Any], where: str) -> dict[str, Source]:
    """`sources` of a data file: each with a title and a date. Raises BadFile."""
    found = {}
    for key, entry in entries(content, "sources", where).items():
        try:
            day = date.fromisoformat(entry["date"])
            found[key] = Source(entry["title"], day, entry.get("url", ""), entry.get("note", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile(f"{where}: source {key!r} must have a title and a date: {error}") from None
    return found


def entries(content: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The table `name` of a data file, of tables. Raises BadFile."""
    found = content.get(name)
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise BadFile(f"{where} must have a table {name!r} of tables")
    return found


def load_json(text: str, where: str) -> dict[str, Any]:
    """One JSON object. Raises BadFile."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BadFile(f"{where} must be JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadFile(f"{where} must be one JSON object, found {type(content).__name__}")
    return content


def data_text(name: str) -> str:
    """A data file of this package."""
    return files("puna.economics").joinpath("data", name).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Ownership:
    """What it takes to own one accelerator with its share of the server and the facility."""

    capex_usd: float
    years: float = 4.0  # over which the capital is recovered
    interest: float = 0.10  # a year
    kw: float = 1.0  # at the rack
    pue: float = 1.0  # of the facility; 1 where `kw` has the facility in it
    usd_per_kwh: float = 0.087
    opex_usd_year: float = 0.0

    def __post_init__(self) -> None:
        for name in ("capex_usd", "years", "kw", "usd_per_kwh"):
            positive(name, getattr(self, name))
        positive("interest", self.interest, zero=True)
        positive("opex_usd_year", self.opex_usd_year, zero=True)
        if not (isfinite(self.pue) and self.pue >= 1):
            raise BadValue(f"pue must be 1 or more, got {self.pue:g}")

    @property
    def recovery(self) -> float:
        """Share of the capital that a year pays back with interest (the capital recovery factor)."""
        if self.interest == 0:
            return 1 / self.years
        return self.interest / -expm1(-self.years * log1p(self.interest))

    @property
    def usd_h(self) -> float:
        power = self.kw * self.pue * self.usd_per_kwh * 8760
        return (self.capex_usd * self.recovery + power + self.opex_usd_year) / 8760
