"""A verdict for every clause of every agreement that reaches a model.

    ok         nothing is to be done, or what is to be done is seen to be done
    violated   it is seen not to be done
    duty       it has to be done, and nothing was shown that tells whether it is
    attest     only you can know
    unknown    something that the answer depends on was not said, or sources disagree

Of several ancestors each one's clauses are judged: what binds is the strictest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from puna.license import texts
from puna.license.agreements import Agreement, Rule, policy
from puna.license.artifacts import Artifact, Tie, ties
from puna.license.places import entity, in_eu
from puna.license.situation import Situation

Word = Literal["ok", "violated", "duty", "attest", "unknown"]
WORST: tuple[Word, ...] = ("violated", "duty", "unknown", "attest", "ok")
Found = tuple[Word, str]

# what reaches a model that was only trained on the outputs of another: none of its weights are in it
_BY_OUTPUTS = frozenset(
    {"name-prefix", "outputs", "policy", "scale", "trademark", "litigation", "termination"}
)


@dataclass(frozen=True, slots=True)
class Verdict:
    agreement: str  # id; empty where the verdict is on what the model is
    clause: str
    topic: str
    verdict: Word
    duty: str
    evidence: str
    fix: str  # empty where nothing is to be done
    effective: str  # date of the agreement
    source: str


@dataclass(frozen=True, slots=True)
class _Case:
    artifact: Artifact
    tie: Tie
    rule: Rule
    situation: Situation

    @property
    def agreement(self) -> Agreement:
        return self.tie.agreement


def check(artifact: Artifact, situation: Situation) -> list[Verdict]:
    """Every clause of every agreement, the model's own first."""
    found = [_identity(artifact)]
    for tie in ties(artifact):
        own = list(_of_agreement(artifact, tie, situation))
        broken = [verdict.clause for verdict in own if verdict.verdict == "violated"]
        found += [_termination(v, broken) if v.topic == "termination" else v for v in own]
    return found


def _of_agreement(artifact: Artifact, tie: Tie, situation: Situation) -> Iterator[Verdict]:
    for rule in tie.agreement.rules:
        if tie.by_outputs and rule.topic not in _BY_OUTPUTS:
            continue
        case = _Case(artifact, tie, rule, situation)
        word, evidence = _judge(case)
        reached = f" (through {tie.via})" if tie.via else ""
        yield Verdict(
            tie.agreement.id, rule.clause, rule.topic, word, rule.duty, evidence + reached,
            "" if word == "ok" else rule.fix, tie.agreement.effective.isoformat(), tie.agreement.source,
        )  # fmt: skip


def _judge(case: _Case) -> Found:
    always = case.rule.topic in ("name-prefix", "outputs", "trademark")  # look at more than activities
    if case.rule.on and not always and not case.situation.activities & set(case.rule.on):
        return "ok", f"no duty arises by {_list(case.situation.activities)}"
    return _TOPICS[case.rule.topic](case)


def _list(words: frozenset[str]) -> str:
    return ", ".join(sorted(words))


def _termination(verdict: Verdict, broken: list[str]) -> Verdict:
    if not broken:
        return verdict
    return replace(
        verdict, verdict="duty", evidence=f"violated: {'; '.join(broken)}", fix="cure what is violated"
    )


def _identity(artifact: Artifact) -> Verdict:
    """Whether it is clear which agreements there are."""
    own, other, reached = artifact.own, artifact.other, ties(artifact)
    said = "; ".join(claim.evidence for claim in artifact.claims)
    from_bases = "; ".join(f"{tie.agreement.name} by {tie.via}" for tie in reached if tie.via)
    word: Word = "ok"
    fix = ""
    if len(own) > 1 or (own and other):
        names = ", ".join([one.name for one in own] + list(other))
        word, evidence = "unknown", f"sources disagree ({names}): {said}"
        fix = "read what came with the weights, then say --licence NAME; until then each is judged"
    elif other and reached:
        word, evidence = "unknown", f"it calls itself {', '.join(other)}, and it comes from {from_bases}"
        fix = "a label of one's own does not lift an ancestor's agreement: keep that, and name it in the card"
    elif reached:
        evidence = "; ".join(text for text in (said, from_bases) if text)
    elif other:
        evidence = f"no Llama agreement: {said}"
    else:
        word, evidence = "unknown", "nothing that came with it says what it is or was made from"
        fix = "say --licence NAME, or --base MODEL for what it was made from"
    return Verdict("", "", "artifact", word, "know which agreements a model is under", evidence, fix, "", "")


def _copy(case: _Case) -> Found:
    if case.artifact.place is None:
        return "duty", "no folder was shown"
    own = case.artifact.files.get("license")
    paths = [*filter(None, (own,)), *case.artifact.more_terms]
    if not paths:
        return "violated", f"there is no LICENSE beside {case.artifact.place.name}"
    others = []
    for path in paths:
        found = texts.agreement_of_text(texts.read_text(path))
        if found is not None and found[0] is case.agreement:
            exact = (
                "the text that Meta publishes, byte for byte"
                if found[1]
                else "its title; the text differs in bytes"
            )
            return "ok", f"{path.name}: {exact}"
        others.append(f"{path.name} is {f'that of {found[0].name}' if found else 'no Llama agreement'}")
    return "violated", "; ".join(others)


def _notice(case: _Case) -> Found:
    if case.artifact.place is None:
        return "duty", f"no folder was shown; the line is “{case.agreement.notice}”"
    path = case.artifact.files.get("notice")
    if path is None:
        return "violated", f"there is no NOTICE beside {case.artifact.place.name}"
    if case.agreement in texts.agreement_of_notice(texts.read_text(path)):
        return "ok", f"{path.name} has the line"
    return "violated", f"{path.name} lacks “{case.agreement.notice}”"


def _attribution(case: _Case) -> Found:
    shown, mark = case.situation.shown, case.rule.mark
    if shown is not None:
        if texts.shows(shown.text, mark):
            return "ok", f"{shown.where} shows “{mark}”; that it is prominent is yours to see"
        return "violated", f"{shown.where} does not show “{mark}”"
    card = case.artifact.files.get("readme")
    if card is not None and texts.shows(texts.read_text(card), mark):
        return "ok", f"{card.name} shows “{mark}”; that it is prominent is yours to see"
    return "duty", "no page was shown (`--attribution`)"


def _name_prefix(case: _Case) -> Found:
    artifact, situation = case.artifact, case.situation
    reaches = not case.tie.by_outputs or "train-on-outputs" in case.rule.on  # 3 speaks of weights alone
    is_new = bool(situation.activities & set(case.rule.on)) or (artifact.is_derived and reaches)
    is_stored = artifact.is_quantized and situation.is_offered
    if not (is_new and (situation.is_offered or situation.is_trained)) and not is_stored:
        return "ok", "no model made or improved with it is offered"
    name = situation.name or (artifact.name if artifact.is_derived or is_stored else None)
    if name is None:
        return "duty", "no name was said (`--name`)"
    if texts.begins_with(name, case.rule.mark):
        return "ok", f"the name is {name}"
    if not is_new:
        return "attest", f"the name is {name}; whether storing in fewer bits creates a model is open"
    if situation.name is None and not situation.is_offered:
        return "duty", f"it would be {case.rule.mark}-{name}"
    return (
        "violated",
        f"the name is {name}, as in {case.rule.mark.replace(' ', '-')}-{name.rpartition('/')[2]}",
    )


def _outputs(case: _Case) -> Found:
    situation, own = case.situation, case.agreement
    if case.rule.allowed:
        return "ok", "allowed since Llama 3.1; the name clause binds what is offered"
    if own.kind == "research":
        if case.tie.by_outputs or situation.is_trained:
            return "unknown", "its text is not public"
        return "ok", "no model is trained"
    if case.tie.by_outputs and not _is_only(case.artifact, own):
        return "violated", f"{case.artifact.name} is no {own.id} and was trained on what {case.tie.via} says"
    if not situation.is_trained:
        return "ok", "no model is trained"
    if situation.is_other_target:
        return "violated", f"the model that is trained is no {own.id}"
    if situation.target is None:
        if "train-on-outputs" in situation.activities:
            return "unknown", "it was not said which model is trained (`--target`)"
        return "ok", "its weights are trained on, and the result is a derivative of them"
    return _outputs_for(situation.target, own)


def _outputs_for(target: Artifact, own: Agreement) -> Found:
    if not ties(target) and not target.other:
        return "unknown", f"nothing says what {target.name} is"
    if _is_only(target, own):
        return "ok", f"{target.name} is under the same agreement"
    return "violated", f"{target.name} is no {own.id}"


def _is_only(artifact: Artifact, agreement: Agreement) -> bool:
    """Whether all weights in a model are of one agreement."""
    found = {tie.agreement.id for tie in ties(artifact) if not tie.by_outputs}
    return found == {agreement.id} and not (artifact.other and not artifact.own and not artifact.bases)


def _scale(case: _Case) -> Found:
    agreement, situation = case.agreement, case.situation
    wanted = agreement.mau_month
    counts = [*((situation.month, n) for n in situation.mau), *situation.mau_of]
    if situation.is_end_user:
        return "ok", "it came inside an integrated end-user product: section 2 does not apply (1.b.ii)"
    if not counts:
        return "attest", f"nobody said how many users you and your affiliates had in {wanted}"
    total = sum(n for month, n in counts if month == wanted)
    if all(month != wanted for month, _ in counts):
        said = sorted({month or "" for month, _ in counts})
        when = f"of {', '.join(said)}" if all(said) else "of no month that was said"
        return (
            "unknown",
            f"{sum(n for _, n in counts):,} users {when} say nothing: {wanted} counts alone, growth after it "
            "changes nothing",
        )
    if total <= agreement.mau_limit:
        return "ok", f"{total:,} users in {wanted}, the limit is {agreement.mau_limit:,}"
    if situation.has_licence:
        return "ok", f"{total:,} users in {wanted}, and Meta has granted a licence"
    return "violated", f"{total:,} users in {wanted}, more than {agreement.mau_limit:,}"


def _trademark(case: _Case) -> Found:
    name = case.situation.name or (case.artifact.name if case.artifact.is_derived else "")
    low = name.lower()
    if "meta" in low or ("llama" in low and not case.rule.mark):
        return "attest", f"the name {name} uses a mark that is not licensed for it, unless it only describes"
    if case.rule.mark and "llama" in low:
        return "duty", f"the name {name} uses the mark"
    return "ok", "no name was said" if not name else f"the name {name} uses no mark"


def _litigation(case: _Case) -> Found:
    if case.situation.litigates:
        return "violated", "you have said that you have sued"
    return "attest", "that you have not sued over intellectual property in the model or its outputs"


def _europe(case: _Case) -> Found:
    sees, region, name = case.artifact.may_see, case.situation.region, case.artifact.name
    if sees is None and case.agreement.version == "4":
        sees = True  # every released model of this version takes pictures
    released = _released_sees(case)
    if sees is False and released is not True:
        return "ok", "a text model"
    if case.situation.is_end_user:
        return "ok", "end users of a product that has it are exempt"
    inside = in_eu(region) if region else None
    if inside is False:
        return "ok", f"{region} is not in the European Union"
    if inside is None:
        unsaid = f"{region} leaves it open" if region else "where you are was not said"
        return "unknown", unsaid if sees else f"{unsaid}, and it may take pictures"
    if released is not None and released != sees:
        other = "does" if released else "does not"
        return "attest", f"whether the limit follows it: what {name} was made from {other} take pictures"
    if sees is None:
        return "unknown", "nothing says whether it takes pictures"
    if case.situation.activities == {"call"}:
        return "attest", f"{region} is in the European Union: that you only call it and hold no copy"
    return "violated", f"{name} takes pictures, and {region} is in the European Union"


def _released_sees(case: _Case) -> bool | None:
    """Whether an ancestor under this agreement takes pictures; None where there is none, or nobody says."""
    found = {
        base.may_see
        for base in case.artifact.bases
        if any(tie.agreement is case.agreement for tie in ties(base))
    }
    return True if True in found else False if found == {False} else None


def _entity(case: _Case) -> Found:
    region = case.situation.region
    return "ok", f"{entity(region)}, in {region}" if region else "where you are was not said"


def _policy(case: _Case) -> Found:
    uses = policy(case.agreement.policy).uses
    unseen = [use.id for use in uses if not use.hazards]
    return "attest", (
        f"{len(uses)} uses are forbidden; Llama Guard has categories for {len(uses) - len(unseen)}, "
        f"none for {', '.join(unseen)} (our own reading)"
    )


def _research(case: _Case) -> Found:
    purpose = case.situation.purpose
    if purpose == "commercial":
        return "violated", "the purpose is commercial"
    if purpose == "research":
        return "attest", "that it is not commercial, and that Meta gave you access"
    return "unknown", "the purpose was not said (`--purpose`)"


_TOPICS: dict[str, Callable[[_Case], Found]] = {
    "copy": _copy,
    "attribution": _attribution,
    "name-prefix": _name_prefix,
    "notice": _notice,
    "policy": _policy,
    "outputs": _outputs,
    "scale": _scale,
    "trademark": _trademark,
    "litigation": _litigation,
    "termination": lambda case: ("ok", "no clause is seen to be violated"),
    "entity": _entity,
    "europe": _europe,
    "research": _research,
    "redistribution": lambda case: ("unknown", "its text is not public"),
}
