"""What each Llama Guard was taught to see, and what of the licences' forbidden uses that covers.

  puna safety show                    the versions
  puna safety show llama-guard-3      its categories, and the uses that a policy forbids
  puna safety show llama-guard-4 --policy policy-2

Uses that no category sees cannot be checked by a machine: whoever serves a model answers for them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, print_facts, print_json, print_table
from puna.core import BadInput, closest

if TYPE_CHECKING:
    from puna.license.agreements import Policy, Use
    from puna.safety.llama_guard import Version

HELP = "categories of Llama Guard, and what of the licences they cover"

_NEWEST = "policy-3.2"
_OF_USES = "llama-guard-3-8b"  # whose codes the policies' map has


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", nargs="?", help="such as llama-guard-3")
    parser.add_argument("--policy", metavar="NAME", help=f"the use policy to map (default: {_NEWEST})")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.safety.llama_guard import find, versions

    if args.version is None:
        if args.policy is not None:
            raise BadInput("--policy belongs to a version: puna safety show llama-guard-3")
        rows = [_row(version) for version in versions().values()]
        if args.json:
            print_json({"versions": [_described(version) for version in versions().values()]})
        else:
            print_table(("VERSION", "CODES", "CATEGORIES", "PICTURES", "MODELS"), rows)
        return 0
    version, policy = find(args.version), _policy(args.policy or _NEWEST)
    if args.json:
        print_json({**_described(version), "policy": policy.id, "uses": _uses(version, policy)})
    else:
        _print(version, policy)
    return 0


def _policy(name: str) -> Policy:
    from puna.license.agreements import agreements, policy

    known = sorted({one.policy for one in agreements().values() if one.policy})
    if name not in known:
        raise BadInput(
            f"there is no use policy {name!r:.80}, there are {', '.join(known)}{closest(name, known)}"
        )
    return policy(name)


def _row(version: Version) -> tuple[str, ...]:
    first, last = version.categories[0].code, version.categories[-1].code
    n = str(len(version.categories))
    return version.id, f"{first} to {last}", n, version.pictures, ", ".join(version.models)


def _described(version: Version) -> dict[str, Any]:
    return {
        "version": version.id,
        "models": list(version.models),
        "pictures": version.pictures,
        "categories": [
            {
                "code": one.code,
                "name": one.name,
                "title": one.title,
                "word": one.word,
                "text": one.text,
                "texts_only": one.texts_only,
            }
            for one in version.categories
        ],
    }


def _uses(version: Version, policy: Policy) -> list[dict[str, Any]] | None:
    """Of each forbidden use the codes of the version that see some of it; none: attest. None for Llama Guard
    1, whose taxonomy is another one than the map's."""
    if version.letter != "S":
        return None
    return [{"id": use.id, "use": use.use, "codes": _codes(version, use)} for use in policy.uses]


def _codes(version: Version, use: Use) -> list[str]:
    from puna.safety.llama_guard import find

    words = [find(_OF_USES).category(code).word for code in use.hazards]
    return [one.code for one in version.categories if one.word in words]


def _print(version: Version, policy: Policy) -> None:
    print_facts({"version": version.id, "models": ", ".join(version.models), "pictures": version.pictures})
    print()
    rows = [
        (one.code, one.name, one.title, "texts only" if one.texts_only else "") for one in version.categories
    ]
    print_table(("CODE", "CATEGORY", "IN ITS PROMPT", ""), rows)
    uses = _uses(version, policy)
    if uses is None:
        print(f"\nThe uses that {policy.id} forbids are mapped to the categories of later versions only.")
        return
    seen = [use for use in uses if use["codes"]]
    print(f"\nForbidden by {policy.id} ({policy.numbering}), and seen in part by")
    print_table(("USE", "CODES", "WHAT"), [(use["id"], " ".join(use["codes"]), use["use"]) for use in seen])
    print("\nNo category sees these; no machine can check them, attest:")
    print_table(("USE", "WHAT"), [(use["id"], use["use"]) for use in uses if not use["codes"]])
