"""What others ask for tokens: dated rows by host and model, with what is suspicious about each.

Dollars for a million tokens, exact decimals. A row without a price, or priced at nothing, is a free tier or
unknown: it is listed and never averaged. A row that has vanished from a source is no proof of retirement.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import cache
from statistics import median

from puna.core import BadFile, UnknownModel, closest
from puna.economics.hardware import CURRENCY, FRESH_DAYS, data_text
from puna.economics.tables import table
from puna.model import catalog

KINDS = ("host", "router", "free", "first-party")
_NOTHING = Decimal(0)
_MOST_USD = 1_000_000  # for a million tokens
_OUTLIER = 3  # times from the median of the model


@dataclass(frozen=True, slots=True)
class Row:
    """One price. The fields are the columns of the file."""

    kind: str
    provider: str
    model_id: str  # as the provider names it
    model: str  # whose weights, as the file groups them
    currency: str
    input: Decimal | None
    output: Decimal | None
    cached_input: Decimal | None
    batch_input: Decimal | None
    batch_output: Decimal | None
    context: int | None
    valid_from: date | None
    valid_to: date | None  # the day on which it ends, where that is announced
    source: str
    fetched: date
    url: str
    note: str

    @property
    def is_free(self) -> bool:
        """Priced at nothing or not at all."""
        return self.kind == "free" or not (self.input and self.output)

    @property
    def both(self) -> Decimal:
        """Dollars for a million tokens in and a million out."""
        assert not self.is_free, "free rows have no sum"
        return (self.input or _NOTHING) + (self.output or _NOTHING)

    def state(self, today: date) -> str:
        """ended, ends, deprecated or listed."""
        if self.valid_to is not None:
            return "ended" if self.valid_to <= today else f"ends {self.valid_to}"
        return "deprecated" if self.note == "deprecated" else "listed"


COLUMNS = tuple(field.name for field in fields(Row))


def read_rows(text: str, where: str) -> list[Row]:
    """A file in the form of the shipped one. Raises BadFile with the line and what is wrong."""
    names, found = table(text, where)
    if tuple(names) != COLUMNS:
        raise BadFile(f"{where} must have the columns {','.join(COLUMNS)}; found {','.join(names)}")
    return [_row(values, f"{where}:{n}") for n, values in found]


def _row(values: dict[str, str], place: str) -> Row:
    try:
        row = Row(
            values["kind"], values["provider"], values["model_id"], values["model"], values["currency"],
            _amount(values["input"]), _amount(values["output"]), _amount(values["cached_input"]),
            _amount(values["batch_input"]), _amount(values["batch_output"]),
            _context(values["context"]),
            _day(values["valid_from"]), _day(values["valid_to"]), values["source"],
            _date(values["fetched"]), values["url"], values["note"],
        )  # fmt: skip
    except (ValueError, TypeError, InvalidOperation) as error:
        raise BadFile(f"{place}: {error}") from None
    if row.kind not in KINDS:
        raise BadFile(f"{place}: kind must be one of {', '.join(KINDS)}, found {row.kind!r}")
    if row.currency != CURRENCY:
        raise BadFile(f"{place}: prices must be in {CURRENCY}, found {row.currency!r}: convert them first")
    if not row.source or not row.provider or not row.model:
        raise BadFile(f"{place}: provider, model and source must not be empty")
    if row.valid_from and row.valid_to and row.valid_to < row.valid_from:
        raise BadFile(f"{place}: it ends on {row.valid_to}, before it begins on {row.valid_from}")
    return row


def _amount(text: str) -> Decimal | None:
    if not text:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or not 0 <= value <= _MOST_USD:
        raise ValueError(f"a price must be from 0 to {_MOST_USD:,} dollars, found {text:.40}")
    return value


def _day(text: str) -> date | None:
    return _date(text) if text else None


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        example = date(2026, 12, 1)
        raise ValueError(f"a day must be like {example} and exist, found {text!r:.40}") from None


def _context(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or len(text) > 12:
        raise ValueError(f"context must be a number of tokens, found {text!r:.40}")
    return int(text)


def write_rows(rows: Iterable[Row]) -> str:
    """The text that read_rows reads."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = (getattr(row, name) for name in COLUMNS)
        writer.writerow(["" if v is None else v for v in values])
    return file.getvalue()


@cache
def shipped() -> tuple[Row, ...]:
    return tuple(read_rows(data_text("prices.csv"), "the shipped prices"))


def family(model: str, rows: Sequence[Row]) -> str:
    """The group of the file that a model of the catalog, or a group's own name, belongs to."""
    groups = sorted({row.model for row in rows})
    entry = catalog.get(model)
    name = entry.name if entry is not None else model.lower()
    fitting = [g for g in groups if name == g.lower() or name.startswith(g.lower() + "-")]
    if not fitting:
        hint = "" if entry is not None else closest(model, groups)  # a known model is no misspelling
        raise UnknownModel(f"no row has a price of {model!r}{hint}")
    return max(fitting, key=len)


@dataclass(frozen=True, slots=True)
class Listed:
    """A row with what is to be said against it."""

    row: Row
    age_days: int
    flags: tuple[str, ...]

    @property
    def counts(self) -> bool:
        """Whether it stands in medians: it is priced, it has not ended, and nothing newer replaces it."""
        return not {"free", "ended", "replaced", "router"} & set(self.flags)


def listed(model: str, rows: Sequence[Row], today: date) -> list[Listed]:
    """All rows of a model, cheapest first, free ones last. Raises UnknownModel."""
    group = family(model, rows)
    mine = [row for row in rows if row.model == group]
    newest: dict[tuple[str, str], Row] = {}
    for row in mine:
        key = (row.provider, row.model_id)
        begun = row.valid_from is None or row.valid_from <= today
        if begun and (key not in newest or _order(row) > _order(newest[key])):
            newest[key] = row
    first = [_flagged(row, newest[(row.provider, row.model_id)], today) for row in mine
             if (row.provider, row.model_id) in newest]  # fmt: skip
    counted = [item.row.both for item in first if item.counts]
    middle = median(counted) if counted else None
    found = [_with_outlier(item, middle) for item in first]
    return sorted(found, key=lambda item: (item.row.is_free, 0 if item.row.is_free else item.row.both))


def _order(row: Row) -> tuple[date, date]:
    return row.fetched, row.valid_from or date.min


def _flagged(row: Row, newest: Row, today: date) -> Listed:
    age = (today - row.fetched).days
    flags = [row.state(today)] if row.state(today) != "listed" else []
    flags += ["free"] if row.is_free else []
    flags += ["router"] if row.kind == "router" else []
    flags += ["replaced"] if row is not newest else []
    flags += [] if row.url else ["no page named"]
    flags += [f"{age} days old"] if age > FRESH_DAYS else []
    return Listed(row, age, tuple(flags))


def _with_outlier(item: Listed, middle: Decimal | None) -> Listed:
    if middle is None or item.row.is_free or middle / _OUTLIER <= item.row.both <= middle * _OUTLIER:
        return item
    return replace(item, flags=(*item.flags, "outlier"))


def medians(items: Sequence[Listed]) -> tuple[Decimal, Decimal, int] | None:
    """Median input and output price of the rows that count, and how many; None without any."""
    counted = [item.row for item in items if item.counts]
    if not counted:
        return None
    inputs = [row.input for row in counted if row.input is not None]
    outputs = [row.output for row in counted if row.output is not None]
    return median(inputs), median(outputs), len(counted)
