"""What a Llama's licence asks of you. No legal advice: the agreements themselves bind.

  puna license show                            the agreements
  puna license show llama-3.1                  its clauses and forbidden uses
  puna license check llama-3.1-8b-instruct --activity serve --attribution index.html
  puna license check ./my-tune --activity distribute --base llama-3.1-8b --name Llama-mine --fix
  puna license check llama-4-scout --activity use --region DE --mau 80000000 --month 2025-03

A licence belongs to an artifact: FOLDER's model card, LICENSE, NOTICE and settings are read, a GGUF file's
tags, the catalog. A model inherits the agreements of all that it was made from.

Exit code 1: a clause is violated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, print_facts, print_json, print_table, printable
from puna.core import BadInput, BadValue

if TYPE_CHECKING:
    from puna.license.agreements import Agreement
    from puna.license.artifacts import Artifact
    from puna.license.check import Verdict
    from puna.license.situation import Shown, Situation

HELP = "what the Llama licences ask of you, clause by clause"

_MODEL_OPTIONS = ("base", "outputs_of", "licence")
_FOR_CHECK = (
    "activity", "name", "region", "mau", "month", "attribution", "target", "purpose", "sbom", *_MODEL_OPTIONS,
)  # fmt: skip
_FLAGS = ("end_user", "separate_licence", "litigation", "fix", "text_only")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from puna.license.agreements import ACTIVITIES
    from puna.license.situation import PURPOSES

    add = parser.add_argument
    add("action", metavar="ACTION", choices=("show", "check"), help="show or check")
    add("what", metavar="WHAT", nargs="?", help="of show: an agreement; of check: a folder, file or model")
    add(
        "--activity",
        metavar="NAME",
        action="append",
        default=[],
        help=f"what you do: {', '.join(ACTIVITIES)}; may be repeated",
    )
    add("--name", metavar="NAME", help="that the model is offered under")
    add("--base", metavar="MODEL", action="append", default=[], help="that it was made from; may be repeated")
    add(
        "--outputs-of",
        metavar="MODEL",
        action="append",
        default=[],
        help="whose answers it was trained on; may be repeated",
    )
    add("--licence", metavar="NAME", help="its agreement, where sources disagree or say nothing")
    add("--target", metavar="MODEL", help="the model that is trained; `other` for one that is no Llama")
    add("--region", metavar="CODE", help="your domicile or principal place of business: DE, US, EU, …")
    add(
        "--mau",
        metavar="[MONTH:][NAME=]N",
        action="append",
        default=[],
        help="monthly active users, yours and of each affiliate",
    )
    add("--month", metavar="YYYY-MM", help="in which they were counted")
    add("--attribution", metavar="FILE|URL", help="where “Built with …” is shown; an address is fetched")
    add("--purpose", choices=PURPOSES, help="of Llama 1")
    add("--text-only", action="store_true", help="the model takes no pictures, whatever its files say")
    add("--end-user", action="store_true", help="you got it inside an integrated end-user product")
    add("--separate-licence", action="store_true", help="Meta has granted you a licence of your own")
    add("--litigation", action="store_true", help="you have sued over rights in the model or its outputs")
    add("--fix", action="store_true", help="write the NOTICE file and the attribution where they are missing")
    add("--sbom", metavar="FILE", help="write a bill of materials (CycloneDX 1.6, JSON)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.action == "show":
        return _show(args)
    if args.what is None:
        raise BadInput("name what to check: a folder, a file, or a model of the catalog")
    if not args.activity:
        raise BadInput(
            "say what you do with it: --activity use, serve, distribute, …; see `puna license --help`"
        )
    return _check(args)


def _show(args: argparse.Namespace) -> int:
    from puna.license.agreements import DISCLAIMER, agreements, find, get
    from puna.license.artifacts import named, ties

    for option in (*_FOR_CHECK, *_FLAGS):
        if getattr(args, option):
            raise BadInput(f"--{option.replace('_', '-')} belongs to `puna license check`, not to show")
    if args.what is None:
        found = list(agreements().values())
    else:
        own = get(args.what)
        found = [own] if own else [tie.agreement for tie in ties(named(args.what))] or [find(args.what)]
    if args.json:
        print_json({"disclaimer": DISCLAIMER, "agreements": [_described(one) for one in found]})
        return 0
    if args.what is None:
        rows = [(one.id, str(one.effective), one.mau_month or "-", one.kind, one.source) for one in found]
        print_table(("AGREEMENT", "SINCE", "USERS OF", "KIND", "TEXT"), rows)
    else:
        for one in found:
            _print_agreement(one)
    print(f"\n{DISCLAIMER}")
    return 0


def _described(one: Agreement) -> dict[str, Any]:
    from puna.license.agreements import policy

    uses = asdict(policy(one.policy)) if one.policy else None
    found = asdict(one) | {"effective": str(one.effective), "read": str(one.read), "policy": uses}
    for row in found["rules"]:
        row |= {"version": one.version, "effective": str(one.effective), "source": one.source}
    return found


def _print_agreement(one: Agreement) -> None:
    from puna.license.agreements import policy

    print_facts(
        {
            "agreement": one.name,
            "since": one.effective,
            "text": one.source,
            "sha256": one.sha256 or None,
            "read": one.read,
            "notice": one.notice or None,
        }
    )
    print()
    rows = [(rule.clause, rule.topic, ", ".join(rule.on) or "anything", rule.duty) for rule in one.rules]
    print_table(("CLAUSE", "TOPIC", "BY", "DUTY"), rows)
    if one.policy:
        found = policy(one.policy)
        print(f"\nForbidden uses, numbered {found.numbering}; {one.policy_source}")
        print(f"{found.reading}.")
        seen = [(use.id, " ".join(use.hazards) or "attest", use.use) for use in found.uses]
        print_table(("USE", "LLAMA GUARD 3", "WHAT"), seen)
    print()


def _check(args: argparse.Namespace) -> int:
    from puna.license.agreements import DISCLAIMER
    from puna.license.artifacts import ties
    from puna.license.check import check

    artifact, situation = _artifact(args), _situation(args)
    verdicts, written = check(artifact, situation), []
    if args.fix:
        written = _fix(args, artifact, verdicts)
    if written:  # what was written is evidence as well
        artifact = _artifact(args)
        situation = replace(situation, shown=_shown(args.attribution))
        verdicts = check(artifact, situation)
    if args.sbom:
        written.append(_write_bill(Path(args.sbom), artifact, verdicts))
    broken = [verdict for verdict in verdicts if verdict.verdict == "violated"]
    if args.json:
        print_json(
            {
                "disclaimer": DISCLAIMER,
                "model": artifact.name,
                "activities": sorted(situation.activities),
                "agreements": [tie.agreement.id for tie in ties(artifact)],
                "verdicts": [asdict(verdict) for verdict in verdicts],
                "violated": len(broken),
                "written": [str(path) for path in written],
            }
        )
    else:
        _print(verdicts, written)
    return 1 if broken else 0


def _artifact(args: argparse.Namespace) -> Artifact:
    """The model, and what options say of it."""
    from puna.license.agreements import find
    from puna.license.artifacts import Claim
    from puna.llm.terms import located

    found = located(args.what)
    if args.licence:
        found = replace(found, claims=(Claim(find(args.licence), "", "--licence"),))
    bases = tuple(located(name) for name in args.base)
    teachers = tuple(located(name) for name in args.outputs_of)
    if args.text_only:
        if found.sees and found.place is None and not found.bases:
            raise BadInput(
                f"{found.name} as it was released takes pictures; for a model made from it without them, "
                "name its folder, or --base"
            )
        found = replace(found, sees=False)
    return replace(found, bases=(*found.bases, *bases), teachers=(*found.teachers, *teachers))


def _situation(args: argparse.Namespace) -> Situation:
    from puna.license import situation as facts
    from puna.llm.terms import located

    dated, rest = facts.dated_users(args.mau, date.today())
    mau = facts.users(rest)
    if args.month is not None and not mau:
        raise BadInput("--month says when users were counted; add --mau without a month, or leave it out")
    is_other = args.target == "other"
    return facts.Situation(
        activities=facts.activities(args.activity),
        name=_name(args.name),
        region=facts.place(args.region),
        mau=mau,
        mau_of=dated,
        month=facts.month(args.month, date.today()) if args.month is not None else None,
        shown=_shown(args.attribution, is_written=args.fix),
        target=located(args.target) if args.target and not is_other else None,
        is_other_target=is_other,
        purpose=args.purpose,
        is_end_user=args.end_user,
        has_licence=args.separate_licence,
        litigates=args.litigation,
    )


def _name(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise BadValue("--name must be the name that the model is offered under, got an empty one")
    return text and text.strip()


def _shown(where: str | None, *, is_written: bool = False) -> Shown | None:
    from puna.license import texts
    from puna.license.situation import Shown

    if where is None:
        return None
    if where.startswith(("http://", "https://")):
        from puna.cli.page_text import fetch

        return Shown(where, fetch(where))
    path = Path(where)
    if not path.exists() and is_written:
        return Shown(where, "")
    if not path.is_file():
        raise BadInput(f"there is no file {where} to look for the attribution in; name one, or an address")
    return Shown(where, texts.read_text(path))


def _fix(args: argparse.Namespace, artifact: Artifact, verdicts: Sequence[Verdict]) -> list[Path]:
    from puna.license import fix

    where = args.attribution
    if len(artifact.own) > 1:
        names = " and ".join(one.id for one in artifact.own)
        raise BadInput(f"sources disagree on {artifact.name} ({names}); add --licence NAME to --fix it")
    if artifact.place is None:
        print("puna: no folder or file was named, so no NOTICE is written", file=sys.stderr)
    if where is not None and where.startswith(("http://", "https://")):
        print(f"puna: {where} is not ours to write; show the attribution there", file=sys.stderr)
        where = None
    return fix.apply(artifact, verdicts, Path(where) if where else None)


def _write_bill(path: Path, artifact: Artifact, verdicts: Sequence[Verdict]) -> Path:
    import json
    from importlib.metadata import version

    from puna.license.sbom import bill
    from puna.weights.pull.fetch import hash_file

    file = artifact.place if artifact.place is not None and artifact.place.is_file() else None
    sha256 = hash_file(file, file.name, lambda *_: None) if file else None
    found = bill(artifact, verdicts, date.today(), version("puna"), sha256)
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _print(verdicts: Sequence[Verdict], written: Sequence[Path]) -> None:
    from puna.license.agreements import DISCLAIMER, agreements

    shown = ""
    for verdict in verdicts:
        if verdict.agreement != shown:
            shown = verdict.agreement
            one = agreements()[shown]
            print(f"\n{one.name}, {one.effective}")
        place = f"{verdict.clause}  {verdict.topic}" if verdict.clause else verdict.topic
        print(f"{verdict.verdict:<9} {place}: {printable(verdict.evidence)}")
        if verdict.fix and verdict.verdict in ("violated", "duty", "unknown"):
            print(f"{'':<9} → {printable(verdict.fix)}")
    for path in written:
        print(f"written   {path}")
    print(f"\n{DISCLAIMER}")
