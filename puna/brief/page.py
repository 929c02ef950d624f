"""The sections of the page, in the order in which they are read."""

from __future__ import annotations

from collections import Counter

from puna.brief import market, models
from puna.brief.checks import VERDICTS, Checked, check_all
from puna.brief.document import Cell, Page, Section, table
from puna.brief.facts import Facts
from puna.brief.sources import sources, stale
from puna.brief.words import listing
from puna.license.agreements import DISCLAIMER


def page(facts: Facts) -> Page:
    checked = check_all(facts)
    sections = (
        _short(facts, checked),
        models.models(facts),
        models.licences(facts),
        market.hosts(facts),
        market.ends(facts),
        market.own(facts),
        models.training(facts),
        _labs(facts),
        _claims(facts, checked),
        sources(facts),
    )
    return Page("The state of the Llama ecosystem", facts.today, tuple(stale(facts)), sections)


def _short(facts: Facts, checked: list[Checked]) -> Section:
    counts = Counter(one.verdict for one in checked)
    found = listing(f"{counts[word]} {word}" for word in VERDICTS if counts[word])
    sentences = (
        models.summary(facts),
        market.summary(facts),
        market.ends_summary(facts),
        market.own_summary(facts),
        f"Of {len(checked)} claims of the profile of {facts.profile.day}: {found}.",
    )
    return Section("short", "In short", sentences, is_list=True)


def _labs(facts: Facts) -> Section:
    source = facts.profile.labs_source
    counts = ("models in its API", "open weights", "priced")
    head = ("lab", *counts, "newest with open weights", "of")
    rows = [
        (
            Cell(lab.name, lab.url), f"{lab.models}", f"{lab.open}", f"{lab.priced}", lab.newest_open or "-",
            f"{lab.newest_date or '-'}",
        )
        for lab in facts.profile.labs
    ]  # fmt: skip
    told = (
        f"What each lab's own API lists, by {source.title} of {source.date}. Weights that a lab publishes "
        "and does not sell itself are not in it.",
    )
    return Section("labs", "Labs: open weights and APIs", told, (table(head, rows, counts),))


def _claims(facts: Facts, checked: list[Checked]) -> Section:
    head = ("part", "claim", "verdict", "found", "source", "as of")
    rows = [
        (
            one.claim.section, one.claim.claim, _verdict(one.verdict), one.finding,
            Cell(one.source or "-", one.url), f"{one.day}",
        )
        for one in checked
    ]  # fmt: skip
    told = (
        f"“{facts.profile.title}”, {facts.profile.day}, claim by claim. Verdicts that the package's data can "
        "give are computed; stale is what held when it was said.",
        DISCLAIMER,
    )
    return Section(
        "claims",
        "Claims of the profile",
        told,
        (table(head, rows, ("as of",), ("claim", "found", "source")),),
    )


def _verdict(word: str) -> Cell:
    return Cell(word, mark=word if " " not in word else "unknown")
