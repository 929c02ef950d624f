"""What a page is made of: the package's data on a day, and the data files of this folder, read strictly."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from puna.core import BadFile, BadValue
from puna.economics.calibrate import measured
from puna.economics.hardware import Source, chips
from puna.economics.prices import Listed, Row, listed
from puna.economics.training import reported, totals
from puna.license.agreements import Agreement, agreements
from puna.model import catalog
from puna.model.catalog import CatalogEntry
from puna.model.sizes import n_active, n_parameters

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that somebody published."""

    value: float
    unit: str
    source: Source
    note: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the profile says, and how it is checked."""

    section: str
    claim: str
    check: str
    claimed: Mapping[str, Any] = field(default_factory=dict)
    otherwise: str = ""  # verdict where the data say otherwise
    then: str = ""  # verdict whatever they say
    verdict: str = ""  # of what is sourced
    finding: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Lab:
    """What a lab's own API lists."""

    key: str
    name: str
    models: int
    open: int
    priced: int
    url: str
    newest_open: str = ""
    newest_date: date | None = None

    @property
    def openness(self) -> str:
        return "none" if not self.open else "all" if self.open == self.models else "some"


@dataclass(frozen=True, slots=True)
class Tier:
    name: str
    parameters: float  # in all, at most


@dataclass(frozen=True, slots=True)
class Focus:
    """The model that is shown host by host, and hosted by oneself."""

    model: str
    utilisations: tuple[float, ...]
    accelerators: tuple[str, ...]
    soon_days: int


@dataclass(frozen=True, slots=True)
class Profile:
    """The data files of this folder."""

    title: str
    day: date
    focus: Focus
    tiers: tuple[Tier, ...]
    figures: Mapping[str, Figure]
    sources: Mapping[str, Source]
    claims: tuple[Claim, ...]
    labs: tuple[Lab, ...]
    labs_source: Source


@dataclass(frozen=True, slots=True)
class Facts:
    today: date
    profile: Profile
    rows: tuple[Row, ...]
    groups: Mapping[str, tuple[Listed, ...]]  # of prices
    models: tuple[CatalogEntry, ...]
    agreements: Mapping[str, Agreement]

    def tier(self, parameters: float) -> str:
        """Raises BadFile where no tier is large enough."""
        for tier in self.profile.tiers:
            if parameters <= tier.parameters:
                return tier.name
        raise BadFile(f"no tier of claims.toml holds a model of {parameters:g} parameters")


@cache
def sizes(name: str) -> tuple[int, int]:
    """Parameters of a model of the catalog, all and active: counted once, for counting takes its time."""
    config = catalog.find(name).config
    return n_parameters(config), n_active(config)


def collect(rows: Sequence[Row], today: date) -> Facts:
    """Raises BadValue for a day before the data were read: they would tell of its future."""
    profile = read_profile()
    newest = max(newest_day(rows), profile.labs_source.date)
    if today < newest:
        raise BadValue(f"the data are of {newest} at the latest; a page of {today} would know its future")
    groups = {name: tuple(listed(name, rows, today)) for name in sorted({row.model for row in rows})}
    models = {entry.name: entry for entry in map(catalog.find, catalog.names())}
    return Facts(today, profile, tuple(rows), groups, tuple(models.values()), agreements())


def newest_day(rows: Sequence[Row]) -> date:
    """On which the youngest of the data was true."""
    days = [row.fetched for row in rows]
    days += [cell.source.date for chip in chips().values() for cell in chip.cells.values()]
    days += [row.source.date for row in measured()]
    days += [run.source.date for run in reported().values()]
    days += [total.source.date for total in totals().values()]
    days += [one.read for one in agreements().values()]
    days += [source.date for source in read_profile().sources.values()]
    return max(days)


@cache
def read_profile() -> Profile:
    """The shipped profile. Raises BadFile for what does not fit together."""
    claims, labs = (_toml(name) for name in ("claims.toml", "labs.toml"))
    sources = {key: Source(**row) for key, row in claims["sources"].items()}
    figures = {
        key: Figure(**{**row, "source": sources[row["source"]]}) for key, row in claims["figures"].items()
    }
    found = tuple(_made(Claim, row) for row in claims["claims"])
    for claim in found:
        if claim.source and claim.source not in sources:
            raise BadFile(f"claims.toml: {claim.claim!r} names the source {claim.source!r}, which is none")
        if (claim.check == "sourced") != bool(claim.verdict):
            raise BadFile(f"claims.toml: {claim.claim!r} must have a verdict if it is sourced, and only then")
    focus: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in claims["focus"].items()
    }
    return Profile(
        claims["profile"]["title"],
        claims["profile"]["date"],
        Focus(**focus),
        tuple(_made(Tier, row) for row in claims["tiers"]),
        figures,
        sources,
        found,
        tuple(_made(Lab, row) for row in labs["labs"]),
        Source(**labs["source"]),
    )


def _made(kind: type[T], row: Mapping[str, Any]) -> T:
    try:
        return kind(**row)
    except TypeError as error:
        raise BadFile(f"a row of {kind.__name__} is wrong: {error}") from None


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((files(__package__) / "data" / name).read_text(encoding="utf-8"))
