"""Every cell of the table of the agreements (table.toml), asked of the checker."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.license import Situation, Verdict, check
from puna.license.agreements import Agreement, agreements, policy
from puna.license.artifacts import Artifact, Claim, named
from puna.license.situation import Shown

TABLE = tomllib.loads((Path(__file__).parent / "table.toml").read_text("utf-8"))
IDS = ["llama-1", "llama-2", "llama-3", "llama-3.1", "llama-3.2", "llama-3.3", "llama-4"]
ALL = ("use", "call", "serve", "distribute", "embed", "train-on-weights", "train-on-outputs")


def judged(model: str | Artifact, topic: str, *activities: str, **facts: Any) -> Verdict | None:
    artifact = named(model) if isinstance(model, str) else model
    found = check(artifact, Situation(frozenset(activities), **facts))
    return next((verdict for verdict in found if verdict.topic == topic), None)


def word(*args: Any, **facts: Any) -> str:
    verdict = judged(*args, **facts)
    return verdict.verdict if verdict else "-"


def effective(one: Agreement) -> str:
    stated = {verdict.effective for verdict in check(named(one.id), Situation(frozenset({"use"})))[1:]}
    assert len(stated) == 1
    return stated.pop()


def kind(one: Agreement) -> str:
    return "research" if word(one.id, "research", "use", purpose="commercial") == "violated" else "community"


def month(one: Agreement) -> str:
    """The one month in which 700,000,001 users, of two affiliates, are too many."""
    months = [f"{year}-{number:02d}" for year in range(2022, 2027) for number in range(1, 13)]
    found = [
        m
        for m in months
        if word(one.id, "scale", "use", mau=(400_000_000, 300_000_001), month=m) == "violated"
    ]
    assert len(found) <= 1
    at_limit = [word(one.id, "scale", "use", mau=(700_000_000,), month=m) for m in found]
    assert at_limit == ["ok"] * len(found)
    return found[0] if found else "-"


def over(one: Agreement) -> str:
    """Whatever one does, until Meta grants a licence."""
    facts = {"mau": (700_000_001,), "month": one.mau_month}
    words = {word(one.id, "scale", activity, **facts) for activity in ALL}
    granted = {word(one.id, "scale", activity, has_licence=True, **facts) for activity in ALL}
    return (
        {"violated": "suspended", "-": "-"}[words.pop()]
        if granted <= {"ok", "-"} and len(words) == 1
        else "?"
    )


def integrated(one: Agreement) -> str:
    found = word(one.id, "scale", "use", mau=(700_000_001,), month=one.mau_month, is_end_user=True)
    return {"ok": "exempt", "-": "-"}[found]


def copy(one: Agreement) -> str:
    if word(one.id, "redistribution", "distribute") == "unknown":
        return "unread"
    assert word(one.id, "copy", "use") == word(one.id, "copy", "serve") == "ok"
    return "yes" if word(one.id, "copy", "distribute") == "duty" else "no"


def notice(one: Agreement) -> str:
    found = judged(one.id, "notice", "distribute")
    return "-" if found is None else found.evidence.partition("“")[2].rstrip("”")


def attribution(one: Agreement) -> str:
    """The phrase that a served page has to have: good with it, and not without its last letter."""
    found = judged(one.id, "attribution", "serve")
    if found is None:
        return "-"
    phrase = found.fix.partition("“")[2].rstrip("”")
    assert word(one.id, "attribution", "serve", shown=Shown("a page", f"<p>{phrase}</p>")) == "ok"
    assert word(one.id, "attribution", "serve", shown=Shown("a page", phrase[:-1])) == "violated"
    return phrase


def trigger(one: Agreement) -> str:
    words = {a: word(one.id, "attribution", a) for a in ("use", "call", "serve", "distribute", "embed")}
    if words["serve"] == "-":
        return "-"
    assert (words["use"], words["serve"], words["distribute"], words["embed"]) == (
        "ok",
        "duty",
        "duty",
        "duty",
    )
    return "uses" if words["call"] == "duty" else "contains"


def prefix(one: Agreement) -> str:
    if word(one.id, "name-prefix", "train-on-weights") == "-":
        return "-"
    by_weights = word(one.id, "name-prefix", "train-on-weights", name="Mine-8B")
    by_outputs = word(one.id, "name-prefix", "train-on-outputs", name="Mine-8B")
    assert by_weights == "violated"
    mark = (
        "Llama 3"
        if word(one.id, "name-prefix", "train-on-weights", name="Llama-mine") == "violated"
        else "Llama"
    )
    assert word(one.id, "name-prefix", "train-on-weights", name=f"acme/{mark}-mine") == "ok"
    return f"{mark} by {'either' if by_outputs == 'violated' else 'weights'}"


def outputs(one: Agreement) -> str:
    own = word(one.id, "outputs", "train-on-outputs", target=named(one.id))
    other = word(one.id, "outputs", "train-on-outputs", is_other_target=True)
    return {("ok", "violated"): "forbidden", ("ok", "ok"): "allowed", ("unknown", "unknown"): "unread"}[
        own, other
    ]


def trademark(one: Agreement) -> str:
    found = judged(one.id, "trademark", "distribute", name="Llama-3-mine")
    if found is None:
        return "-"
    rule = one.rule("trademark")
    assert rule is not None
    return "none" if found.verdict == "attest" else rule.mark


def suit(one: Agreement) -> str:
    words = word(one.id, "litigation", "use"), word(one.id, "litigation", "use", litigates=True)
    return {("attest", "violated"): "ends", ("-", "-"): "-"}[words]


def breach(one: Agreement) -> str:
    words = word(one.id, "termination", "use"), word(one.id, "termination", "use", litigates=True)
    return {("ok", "duty"): "may end", ("-", "-"): "-"}[words]


def europe(one: Agreement) -> str:
    """By a model that takes pictures, a text model, and one of which it was not said."""
    claims = (Claim(one, "", "test"),)
    made = {sees: Artifact("a-model", claims=claims, sees=sees) for sees in (True, False, None)}
    words = tuple(word(made[sees], "europe", "use", region="FR") for sees in (True, False, None))
    assert word(made[True], "europe", "use", region="GB") in ("ok", "-")
    assert word(made[True], "europe", "use", region="FR", is_end_user=True) in ("ok", "-")
    released = {model.may_see for model in _released(one)}
    if words == ("-", "-", "-"):
        return "-"
    assert words[:2] == ("violated", "ok")
    if released == {False}:
        return "inert"
    return "every model" if released == {True} and words[2] == "violated" else "multimodal"


def _released(one: Agreement) -> list[Artifact]:
    from puna.model.catalog import CATALOG

    return [artifact for entry in CATALOG if (artifact := named(entry.name)).own == (one,)]


def entity(one: Agreement) -> str:
    near = [judged(one.id, "entity", "use", region=code) for code in ("DE", "NO", "CH", "EU")]
    far = [judged(one.id, "entity", "use", region=code) for code in ("US", "GB", "IN")]
    if near[0] is None:
        return "-"
    assert all(v and "Meta Platforms Ireland Limited" in v.evidence for v in near)
    assert all(v and "Meta Platforms, Inc." in v.evidence for v in far)
    return "Ireland or Inc."


def uses(one: Agreement) -> int:
    return len(policy(one.policy).uses) if one.policy else 0


ROWS: dict[str, Callable[[Agreement], Any]] = {
    f.__name__: f
    for f in (
        effective, kind, month, over, integrated, copy, notice, attribution, trigger, prefix, outputs,
        trademark, suit, breach, europe, entity, uses,
    )
}  # fmt: skip
CELLS = [(row, name) for row in TABLE for name in IDS]


def test_the_table_is_whole() -> None:
    assert set(ROWS) == set(TABLE)
    assert list(agreements()) == IDS
    assert {len(row) for row in TABLE.values()} == {len(IDS)}


@pytest.mark.parametrize(("row", "name"), CELLS, ids=[f"{row}-{name}" for row, name in CELLS])
def test_cell(row: str, name: str) -> None:
    assert ROWS[row](agreements()[name]) == TABLE[row][IDS.index(name)]
