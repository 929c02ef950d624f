"""Models with their tiers, their licences, and what training them took."""

from __future__ import annotations

from puna.brief.document import Cell, Section, table
from puna.brief.facts import Facts, sizes
from puna.brief.words import MISSING, listing, scaled, usd
from puna.economics.hardware import RATES, chip
from puna.economics.training import Reported, reported, totals
from puna.license.artifacts import claim as licence_of
from puna.model.catalog import ANNOUNCED, CatalogEntry


def _licence(model: CatalogEntry) -> str:
    own = licence_of(model.licence, "").agreement
    return own.id if own else model.licence


def _llamas(facts: Facts) -> list[CatalogEntry]:
    """Those under an agreement of Meta."""
    return [model for model in facts.models if _licence(model) in facts.agreements]


def summary(facts: Facts) -> str:
    llamas = _llamas(facts)
    counts = [sizes(model.name)[0] for model in llamas]
    pictures = sum(model.config.vision is not None for model in llamas)
    return (
        f"{len(llamas)} released Llamas and guards under {len(facts.agreements)} agreements, from "
        f"{scaled(min(counts))} to {scaled(max(counts))} parameters, {pictures} of them with pictures."
    )


def models(facts: Facts) -> Section:
    groups: dict[tuple[str, str, int], list[CatalogEntry]] = {}
    for model in _llamas(facts):
        size = sizes(model.name)[0]
        groups.setdefault((facts.tier(size), _licence(model), size), []).append(model)
    order = [tier.name for tier in facts.profile.tiers]
    ids = list(facts.agreements)
    rows = []
    for (tier, licence, size), some in sorted(
        groups.items(), key=lambda item: (order.index(item[0][0]), ids.index(item[0][1]), item[0][-1])
    ):
        first = some[0]
        rows.append((
            ", ".join(model.name for model in some), tier, scaled(size), scaled(sizes(first.name)[1]),
            f"{first.config.context_length:,}", "yes" if first.config.vision else "no", licence,
        ))  # fmt: skip
    numbers = ("parameters", "active", "context")
    head = ("models", "tier", *numbers, "pictures", "agreement")
    told = [
        "By the catalog; the context is that of training. A tier is the smallest machine that a model is "
        "usually run on: "
        + listing(f"{tier.name} up to {scaled(tier.parameters)}" for tier in facts.profile.tiers)
        + " parameters, in our reading."
    ]
    told += [
        f"{one.name} ({scaled(one.parameters)} parameters, {scaled(one.active_parameters)} active, "
        f"{one.n_experts} experts) was {one.note.partition(':')[0]} (announcement of {one.date})."
        for one in ANNOUNCED
    ]
    return Section("models", "Models", tuple(told), (table(head, rows, numbers, ("models",)),))


def licences(facts: Facts) -> Section:
    head = (
        "agreement", "since", "users counted in", "limit", "attribution", "by who", "name begins with",
        "outputs may train others", "limit in the EU", "read",
    )  # fmt: skip
    rows = []
    for one in facts.agreements.values():
        shown, name, outputs = (one.rule(topic) for topic in ("attribution", "name-prefix", "outputs"))
        has_unread = outputs is not None and outputs.clause == "unread"
        may = (
            MISSING if outputs is None else "not public" if has_unread else "yes" if outputs.allowed else "no"
        )
        rows.append((
            Cell(one.name, one.source), f"{one.effective}", one.mau_month or MISSING,
            f"{one.mau_limit:,}" if one.mau_month else MISSING, shown.mark if shown else MISSING,
            f"who {shown.trigger} it" if shown else MISSING, name.mark if name else MISSING, may,
            "multimodal models" if one.rule("europe") else "no", f"{one.read}",
        ))  # fmt: skip
    told = (
        "The users are those of licensee and affiliates together, in that month alone. A licence belongs to "
        "an artifact, and a derivative inherits all of its ancestors' agreements: puna license check knows.",
    )
    return Section(
        "licences", "Licences", told, (table(head, rows, ("since", "users counted in", "limit", "read")),)
    )


def training(facts: Facts) -> Section:
    told = (
        "Operations are six for each active parameter and token. Hours, tokens and emissions are those of "
        "Meta's cards and papers, unless a speed is stated instead; power is the accelerator's rating. "
        "Dollars are the hours at the lowest and highest hourly rate that the table of accelerators has.",
    )
    numbers = ("active", "tokens", "operations", "hours", "TFLOPS", "of peak", "MWh", "t CO₂e")
    head = ("run", *numbers, "dollars", "source")
    rows = [
        (
            run.name, scaled(run.active), scaled(run.tokens), f"{run.flops:.2e}", scaled(run.hours),
            f"{run.achieved_tflops:.0f}", f"{run.mfu:.1%}", f"{run.mwh:,.0f}",
            f"{run.tonnes:,.0f}" if run.tonnes is not None else MISSING, _dollars(run.accelerator, run.hours),
            Cell(run.source.title, run.source.url),
        )
        for run in reported().values()
    ]  # fmt: skip
    sums = [
        (one.name, scaled(one.hours), chip(one.accelerator).name, _dollars(one.accelerator, one.hours),
         Cell(one.source.title, one.source.url))
        for one in totals().values()
    ]  # fmt: skip
    return Section(
        "training",
        "What training took",
        (*told, *_speeds(list(reported().values()))),
        (
            table(head, rows, numbers),
            table(("release", "hours", "on", "dollars", "source"), sums, ("hours",), title="Whole releases"),
        ),
    )


def _speeds(runs: list[Reported]) -> list[str]:
    stated = [run.name for run in runs if run.tflops]
    return [f"Stated as speed: {listing(stated)}; its hours follow from that."] if stated else []


def _dollars(accelerator: str, hours: float) -> str:
    own = chip(accelerator)
    rates = [rate for kind in RATES if (rate := own.get(f"{kind}_usd_h")) is not None]
    return f"{usd(hours * min(rates))} to {usd(hours * max(rates))}" if rates else MISSING
