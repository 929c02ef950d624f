"""What tenants have used, as the ledger of `puna serve` has it.

  puna usage --since 2026-11-01 --by tenant,model
  puna usage --tenant acme --csv november.csv --since 2026-11-01 --until 2026-12-01

Times are UTC. --csv writes every single row, "-" to stdout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, print_json, print_table, printable
from puna.core import BadInput

if TYPE_CHECKING:
    from puna.server.tenants.queries import Filters, Total

HELP = "say what tenants have used, and what it costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--since", metavar="TIME", help="the first day or time that counts: 2026-11-01, 2026-11-01T08:30:00Z")
    add("--until", metavar="TIME", help="the first day or time that does not count any more")
    add("--by", metavar="NAMES", default="tenant", help="of tenant,key,model,day,endpoint,status (tenant)")
    add("--tenant", metavar="NAME", help="this one alone")
    add("--key", metavar="ID", help="this API key alone, by its id")
    add("--model", metavar="NAME", help="this one alone")
    add("--csv", metavar="FILE", help='write every row to a file, or "-" to stdout')
    add_database(parser)
    add_json(parser)


def add_database(parser: argparse.ArgumentParser) -> None:
    text = "sqlite:///FILE or postgresql://USER@HOST/NAME (default: SQLite in the user's data)"
    parser.add_argument("--database", metavar="URL", default="", help=text)


def run(args: argparse.Namespace) -> int:
    from puna.server.storage.database import open_database
    from puna.server.tenants.queries import Filters, moment, totals

    if args.csv is not None and args.json:
        raise BadInput("--csv writes rows and --json sums; choose one of them")
    filters = Filters(
        since=moment(args.since) if args.since else None,
        until=moment(args.until) if args.until else None,
        tenant=args.tenant,
        key=args.key,
        model=args.model,
    )
    by = [name.strip() for name in args.by.split(",") if name.strip()]
    database = open_database(args.database)
    try:
        if args.csv is not None:
            return _write_csv(args.csv, database, filters)
        groups = totals(database, by, filters)
        everything = totals(database, (), filters)[0]
    finally:
        database.close()
    if args.json:
        rows = [{**dict(zip(by, total.group, strict=True)), **_sums(total)} for total in groups]
        print_json({"by": by, "usage": rows, "total": _sums(everything)})
    else:
        _print(by, groups, everything)
    return 0


def _write_csv(name: str, database: Any, filters: Filters) -> int:
    from puna.server.tenants.queries import export_csv

    if name == "-":
        for piece in export_csv(database, filters):
            sys.stdout.write(piece.replace("\r\n", "\n"))
        return 0
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        file.writelines(export_csv(database, filters))
    return 0


def _sums(total: Total) -> dict[str, Any]:
    from puna.server.tenants.prices import dollars

    return {
        "requests": total.requests,
        "prompt_tokens": total.prompt_tokens,
        "cached_tokens": total.cached_tokens,
        "output_tokens": total.output_tokens,
        "cost_nano": total.cost_nano,
        "cost_usd": dollars(total.cost_nano),
    }


def _print(by: list[str], groups: list[Total], everything: Total) -> None:
    from puna.server.tenants.prices import dollars

    def cells(group: list[str], total: Total) -> list[str]:
        counts = (total.requests, total.prompt_tokens, total.cached_tokens, total.output_tokens)
        return [*group, *(f"{n:,}" for n in counts), f"${dollars(total.cost_nano)}"]

    header = [*(name.upper() for name in by), "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "COST"]
    rows = [cells([printable(text) or "-" for text in total.group], total) for total in groups]
    if by:
        rows.append(cells(["total", *[""] * (len(by) - 1)], everything))
    print_table(header, rows)
