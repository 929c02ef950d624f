"""API keys of `puna serve`: make, list and revoke them.

  puna keys create --name ci --tenant acme --requests-per-minute 60 --expires 30d
  puna keys list
  puna keys revoke key_0123456789abcdef

`create` prints the key once; what is stored cannot be turned back into it.
"""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, print_facts, print_json, print_table, printable
from puna.cli.usage import add_database
from puna.core import BadInput, BadValue

if TYPE_CHECKING:
    from puna.server.tenants.keys import Keys

HELP = "make, list and revoke API keys of the server"
_AGE = re.compile(r"([1-9][0-9]{0,4})([hd])")
_FOR_CREATE = ("name", "scope", "expires", "model", "priority", "policy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from puna.server.tenants.limits import COUNTED

    add = parser.add_argument
    add("action", metavar="ACTION", choices=("create", "list", "revoke"), help="create, list or revoke")
    add("key", metavar="KEY", nargs="?", help="of revoke: the id, or the first letters that `list` shows")
    add("--tenant", metavar="NAME", help="whose key it is; of list: this tenant's alone")
    add("--name", metavar="NAME", help="to know it by (default: the tenant's name)")
    add("--scope", metavar="NAME", action="append", help="inference or admin; may be repeated (inference)")
    add("--expires", metavar="WHEN", help="a day or time in UTC, or from now: 12h, 30d (default: never)")
    for name in COUNTED:
        add(f"--{name.replace('_', '-')}", metavar="N", type=int, help="limit (default: none)")
    add("--model", metavar="NAME", action="append", help="that it may use; may be repeated (default: all)")
    add("--priority", metavar="N", type=int, help="higher goes first (default: 0)")
    add("--policy", metavar="NAME", help="safety policy that it is held to (default: the server's default)")
    add("--active", action="store_true", help="of list: without expired and revoked keys")
    add_database(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.server.storage.database import open_database
    from puna.server.tenants.keys import Keys

    check_usage(args)
    database = open_database(args.database)
    try:
        keys = Keys(database)
        {"create": _create, "list": _list, "revoke": _revoke}[args.action](args, keys)
    finally:
        database.close()
    return 0


def check_usage(args: argparse.Namespace) -> None:
    from puna.server.tenants.limits import COUNTED

    if (args.action == "revoke") != (args.key is not None):
        raise BadInput(
            "name the key to revoke; `puna keys list` shows those that there are"
            if args.key is None
            else f"`puna keys {args.action}` takes no KEY, got {args.key!r}"
        )
    if args.action != "create":
        for name in (*_FOR_CREATE, *COUNTED):
            if getattr(args, name) is not None:
                flag = name.replace("_", "-")
                raise BadInput(f"--{flag} belongs to `puna keys create`, not to {args.action}")
    elif args.tenant is None:
        raise BadInput("a key belongs to a tenant; say whose it is with --tenant")


def _create(args: argparse.Namespace, keys: Keys) -> None:
    from puna.server.tenants.limits import COUNTED, Limits

    limits = Limits(
        **{name: getattr(args, name) for name in COUNTED},
        models=tuple(args.model) if args.model else None,
        priority=args.priority or 0,
        policy=args.policy,
    )
    key, secret = keys.create(
        args.name or args.tenant,
        args.tenant,
        scopes=args.scope or ["inference"],
        limits=limits,
        expires_at=_expiry(args.expires) if args.expires else None,
    )
    if args.json:
        print_json({**key.to_json(), "key": secret})
        return
    facts = key.to_json()
    print_facts({"key": secret, "id": key.id, "name": key.name, "tenant": key.tenant, **_shown(facts)})
    print("\nKeep the key: it is shown this once.")


def _list(args: argparse.Namespace, keys: Keys) -> None:
    found = keys.list(args.tenant, is_active=args.active)
    if args.json:
        print_json({"keys": [key.to_json() for key in found]})
        return
    rows = []
    for key in found:
        shown = _shown(key.to_json())
        limits = shown["limits"] or "-"
        rows.append(
            [
                key.id,
                f"{key.prefix}…",
                printable(key.name),
                printable(key.tenant),
                str(shown["scopes"]),
                key.state(datetime.now(UTC)),
                str(shown["expires"] or "never"),
                str(limits),
            ]
        )
    print_table(("ID", "KEY", "NAME", "TENANT", "SCOPES", "STATE", "EXPIRES", "LIMITS"), rows)


def _revoke(args: argparse.Namespace, keys: Keys) -> None:
    key = keys.revoke(args.key)
    if args.json:
        print_json(key.to_json())
    else:
        print(f"{key.id} ({printable(key.name)}) is revoked; servers refuse it within about a second.")


def _shown(report: dict[str, Any]) -> dict[str, str | None]:
    """Scopes, expiry and limits for people."""
    limits = [
        f"{name} {', '.join(value) if isinstance(value, list | tuple) else value}"
        for name, value in report["limits"].items()
    ]
    expires = report["expires_at"]
    return {
        "scopes": ",".join(report["scopes"]),
        "expires": expires[:16].replace("T", " ") if expires else None,
        "limits": printable("; ".join(limits)) or None,
    }


def _expiry(text: str) -> datetime:
    from puna.server.tenants.queries import moment

    match = _AGE.fullmatch(text)
    if match is None:
        try:
            return moment(text)
        except BadValue:
            raise BadValue(
                "--expires must be a time from now, like 12h or 90d, or a day or time, like 2026-12-01 or "
                f"2026-12-01T08:30:00Z, got {text!r}"
            ) from None
    n = int(match[1])
    return datetime.now(UTC) + (timedelta(days=n) if match[2] == "d" else timedelta(hours=n))
