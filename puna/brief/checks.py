"""Verdicts on claims of the profile, computed from the package's data: true, stale, wrong or not checkable.

stale: it held on the profile's day, or when it was said, and does not on the page's. Where nobody can tell,
the verdict is "not checkable", with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from statistics import median

from puna.brief.facts import Claim, Facts, sizes
from puna.brief.words import listing, per_million, scaled, usd
from puna.core import BadFile
from puna.economics.hardware import FRESH_DAYS, RATES, chip
from puna.economics.prices import Row
from puna.economics.training import Reported, reported, totals
from puna.license.artifacts import claim as licence_of
from puna.model.catalog import announced, get

UNKNOWN = "not checkable"
VERDICTS = ("true", "stale", "wrong", UNKNOWN)


@dataclass(frozen=True, slots=True)
class Checked:
    claim: Claim
    verdict: str
    finding: str
    source: str
    url: str
    day: date  # on which what it rests on was true


Found = tuple[bool, str, str, str, date]  # whether it holds; finding; source, its address and date
HERE = "the package's data"


def check(claim: Claim, facts: Facts) -> Checked:
    """Raises BadFile for a kind of check that does not exist."""
    named = facts.profile.sources.get(claim.source)
    if claim.check == "sourced":
        assert named is not None, "read_profile has seen to it"
        return Checked(claim, claim.verdict, claim.finding, named.title, named.url, named.date)
    if claim.check == "unchecked":
        title, url, day = (named.title, named.url, named.date) if named else ("", "", facts.profile.day)
        return Checked(claim, UNKNOWN, claim.finding, title, url, day)
    if claim.check == "price_range":
        return _price_range(claim, facts)
    if claim.check not in _CHECKS:
        raise BadFile(f"claims.toml: {claim.claim!r} asks for the check {claim.check!r}, which is none")
    holds, finding, title, url, day = _CHECKS[claim.check](claim, facts)
    if named:
        title, url = f"{title}; {named.title}", named.url
    if claim.finding:
        finding = f"{finding}; {claim.finding}"
    verdict = claim.then or ("true" if holds else claim.otherwise or "wrong")
    return Checked(claim, verdict, finding, title, url, day)


def check_all(facts: Facts) -> list[Checked]:
    return [check(claim, facts) for claim in facts.profile.claims]


def _effective(claim: Claim, facts: Facts) -> Found:
    found = {key: facts.agreements[key] for key in claim.claimed}
    holds = all(f"{found[key].effective}".startswith(month) for key, month in claim.claimed.items())
    said = listing(f"{one.name} {one.effective}" for one in found.values())
    return holds, said, "the agreements", "", max(one.read for one in found.values())


def _snapshot(claim: Claim, facts: Facts) -> Found:
    tested = [one for one in facts.agreements.values() if one.mau_month]
    same = all(one.mau_limit == claim.claimed["limit"] for one in tested)
    months = listing(f"{one.mau_month} for Llama {one.version}" for one in tested)
    finding = (
        f"{'the number is right' if same else 'the number differs'}, and it is no threshold to be crossed: "
        f"it is counted once for each version, over licensee and affiliates, in one month ({months}); growth "
        "after that triggers nothing"
    )
    return not tested, finding, tested[-1].name, tested[-1].source, max(one.read for one in tested)


def _released(claim: Claim, facts: Facts) -> Found:
    missing = [name for name in claim.claimed["models"] if get(name) is None]
    notes = [f"{name}: {plan.note}" for name in missing if (plan := announced(name))]
    day = max(one.read for one in facts.agreements.values())
    return not missing, "; ".join(notes) or "all are released", "the catalog", "", day


def _of_licence(claim: Claim, facts: Facts) -> list[str]:
    """Models of an agreement, guards aside."""
    wanted = claim.claimed["licence"]
    return [
        model.name
        for model in facts.models
        if (own := licence_of(model.licence, "").agreement) and own.id == wanted and "guard" not in model.name
    ]


def _smallest(claim: Claim, facts: Facts) -> Found:
    models = [model for model in facts.models if model.name in _of_licence(claim, facts)]
    least = min(models, key=lambda model: sizes(model.name))
    n, active = sizes(least.name)
    finding = f"the smallest is {least.name} with {scaled(n)} parameters, {scaled(active)} active"
    holds = facts.tier(n) == claim.claimed["tier"]
    return holds, finding, "the catalog", "", facts.agreements[claim.claimed["licence"]].read


def _experts(claim: Claim, facts: Facts) -> Found:
    models = [model for model in facts.models if model.name in _of_licence(claim, facts)]
    mixed = [model for model in models if model.config.experts is not None]
    finding = f"{len(mixed)} of {len(models)} entries of the catalog are mixtures of experts"
    return bool(mixed), finding, "the catalog", "", facts.agreements[claim.claimed["licence"]].read


def _standing(facts: Facts, providers: Sequence[str]) -> list[Row]:
    return [
        item.row
        for items in facts.groups.values()
        for item in items
        if item.row.provider in providers
        and not item.row.is_free
        and not {"ended", "replaced"} & set(item.flags)
    ]


def _listing(claim: Claim, facts: Facts) -> Found:
    found = {host: _standing(facts, providers) for host, providers in claim.claimed["hosts"].items()}
    rows = [row for some in found.values() for row in some]
    said = listing(f"{host} {len(rows)}" for host, rows in found.items())
    day = max((row.fetched for row in rows), default=facts.profile.day)
    return all(found.values()), f"rows that still hold: {said}", "the price rows", "", day


def _first_party(claim: Claim, facts: Facts) -> Found:
    rows = [row for row in facts.rows if row.provider in claim.claimed["providers"]]
    priced = [row for row in rows if not row.is_free]
    names = listing(sorted({row.source for row in rows}))
    finding = (
        f"it existed as a preview: {len(rows)} rows of Meta's own API stand in {names or 'no source'}, "
        f"{len(priced)} of them with a price"
    )
    return not rows, finding, "the price rows", "", max((r.fetched for r in rows), default=facts.profile.day)


def _lab(claim: Claim, facts: Facts) -> Found:
    lab = next(lab for lab in facts.profile.labs if lab.key == claim.claimed["lab"])
    source = facts.profile.labs_source
    finding = (
        f"its own API lists {lab.models} models, {lab.open} with open weights, {lab.priced} with a price"
    )
    holds = lab.openness in claim.claimed["open"] and lab.priced > 0
    return holds, finding, source.title, lab.url, source.date


def _figure(claim: Claim, facts: Facts) -> Found:
    figure = facts.profile.figures[claim.claimed["figure"]]
    low, high = (claim.claimed.get(name) for name in ("low", "high"))
    holds = (low is None or low <= figure.value) and (high is None or figure.value <= high)
    said = {"usd": usd(figure.value), "year": f"{figure.value:g}"}.get(figure.unit, f"{figure.value:,.0f}")
    finding = f"{said} ({figure.note})" if figure.note else said
    return holds, finding, figure.source.title, figure.source.url, figure.source.date


def _run_cost(claim: Claim, facts: Facts) -> Found:
    total, own = totals()[claim.claimed["total"]], chip(claim.claimed["accelerator"])
    rates = [value for kind in RATES if (value := own.get(f"{kind}_usd_h")) is not None]
    low, high = (total.hours * rate for rate in (min(rates), max(rates)))
    finding = (
        f"{scaled(total.hours)} hours of {own.name} by the card make {usd(low)} to {usd(high)} at "
        f"{per_million(min(rates))} to {per_million(max(rates))} an hour; only a whole programme of research "
        "comes to more"
    )
    holds = low <= claim.claimed["high"] and high >= claim.claimed["low"]
    return holds, finding, total.source.title, total.source.url, total.source.date


def _reported(claim: Claim, facts: Facts) -> Found:
    """Whether a maker's hours are unknown."""
    said: list[Reported] = [
        run for run in reported().values() if run.name.startswith(claim.claimed["prefix"]) and not run.tflops
    ]
    finding = f"cards and papers state accelerator-hours of {len(said)} runs here; dollars they do not state"
    newest = max(said, key=lambda run: run.source.date)
    return not said, finding, newest.source.title, newest.source.url, newest.source.date


def _priced(facts: Facts, group: str, form: str) -> list[Row]:
    """Of hosts, in one source."""
    return [
        row
        for row in facts.rows
        if row.model == group and row.source.startswith(form) and row.kind == "host" and not row.is_free
    ]


def _inside(row: Row, claim: Claim) -> bool:
    for name, price in (("input", row.input), ("output", row.output)):
        low, high = (Decimal(str(value)) for value in claim.claimed[name])
        if price is None or not low <= price <= high:
            return False
    return True


def _price_range(claim: Claim, facts: Facts) -> Checked:
    """True where more than half of the hosts ask that, by the claim's source and by fresh prices."""
    groups = claim.claimed["groups"]
    then = [row for name in groups for row in _priced(facts, name, claim.claimed["form"])]
    now = [
        item.row
        for name in groups
        for item in facts.groups.get(name, ())
        if item.counts and item.age_days <= FRESH_DAYS
    ]
    if not then or not now:
        return Checked(claim, UNKNOWN, "the prices have no such rows", HERE, "", facts.profile.day)
    counts = [(sum(_inside(row, claim) for row in rows), len(rows)) for rows in (then, now)]
    (then_in, then_all), (now_in, now_all) = counts
    finding = (
        f"{then_in} of {then_all} rows of {then[0].source} are inside, and {now_in} of {now_all} that hold "
        f"on the page's day and are at most {FRESH_DAYS} days old"
    )
    held, holds = (inside + inside > n for inside, n in counts)
    verdict = "true" if held and holds else "stale" if held else "wrong"
    return Checked(claim, verdict, finding, "the price rows", "", max(row.fetched for row in now))


def _price_middle(claim: Claim, facts: Facts) -> Found:
    rows = _priced(facts, claim.claimed["group"], claim.claimed["form"])
    if not rows:
        return False, "the prices have no such rows", HERE, "", facts.profile.day
    middle = median(row.output for row in rows if row.output is not None)
    off = abs(float(middle) / claim.claimed["output"] - 1)
    finding = f"the median of {len(rows)} hosts in {rows[0].source} is {per_million(middle)}"
    return off <= claim.claimed["within"], finding, "the price rows", "", rows[0].fetched


_CHECKS: dict[str, Callable[[Claim, Facts], Found]] = {
    "effective": _effective,
    "snapshot": _snapshot,
    "released": _released,
    "smallest": _smallest,
    "experts": _experts,
    "listing": _listing,
    "first_party": _first_party,
    "lab": _lab,
    "figure": _figure,
    "run_cost": _run_cost,
    "reported": _reported,
    "price_middle": _price_middle,
}
