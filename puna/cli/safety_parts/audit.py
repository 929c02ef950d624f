"""What the safety checks of `puna serve` found: how often, and in which calls.

  puna safety audit --since 2026-11-01
  puna safety audit --tenant acme --action blocked --limit 20

Times are UTC. No text of a call is kept: an audit has its verdict, its score and whose call it was.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from puna.cli.common import add_json, print_json, print_table, printable
from puna.cli.usage import add_database
from puna.core import BadInput

if TYPE_CHECKING:
    from puna.server.tenants.audits import Audited

HELP = "what the safety checks of the server found"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--since", metavar="TIME", help="the first day or time that counts: 2026-11-01, 2026-11-01T08:30:00Z")
    add("--until", metavar="TIME", help="the first day or time that does not count any more")
    add("--tenant", metavar="NAME", help="this one alone")
    add("--model", metavar="NAME", help="this one alone")
    add("--action", metavar="NAME", help="of the calls that are listed: blocked, reported, …")
    add("--limit", metavar="N", type=int, default=10, help="latest calls that are listed (default: 10)")
    add_database(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.server.storage.database import open_database
    from puna.server.tenants.audits import check_action, counts, latest
    from puna.server.tenants.queries import Filters, moment

    if args.limit < 0:
        raise BadInput(f"--limit must be 0 or more, got {args.limit}")
    check_action(args.action)
    filters = Filters(
        since=moment(args.since) if args.since else None,
        until=moment(args.until) if args.until else None,
        tenant=args.tenant,
        model=args.model,
    )
    database = open_database(args.database)
    try:
        summed = counts(database, filters)
        calls = latest(database, filters, action=args.action, limit=args.limit)
    finally:
        database.close()
    if args.json:
        names = ("tenant", "policy", "action")
        rows = [{**dict(zip(names, key, strict=True)), "requests": n} for key, n in summed.items()]
        print_json({"counts": rows, "calls": [call.to_json() for call in calls]})
        return 0
    rows_of = [[printable(key) or "-" for key in keys] + [f"{n:,}"] for keys, n in summed.items()]
    print_table(("TENANT", "POLICY", "ACTION", "REQUESTS"), rows_of)
    if calls:
        print()
        print_table(
            ("TIME", "TENANT", "MODEL", "ACTION", "STAGE", "SCORE", "CATEGORIES"), [*map(_cells, calls)]
        )
    return 0


def _cells(found: Audited) -> list[str]:
    used, audit = found.usage, found.audit
    return [
        used.created_at.isoformat(" ", "seconds")[:19],
        printable(used.tenant) or "-",
        printable(used.model),
        audit.action,
        audit.stage or "-",
        f"{audit.score:.3f}",
        printable(audit.categories or audit.error) or "-",
    ]
