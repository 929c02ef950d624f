"""Gross margin of each tenant and model: what the ledger charged against what the machines cost.

  puna usage --csv november.csv --since 2026-11-01 --until 2026-12-01
  puna cost margin november.csv --hours 720 --n 2 --rate 1.30 --price-list prices.toml
  puna cost margin server.db --since 2026-11-01 --until 2026-12-01 --hours 720 --n 2 --rate 1.30

LEDGER is such a CSV file, or the database itself: its file, or its URL as `puna usage --database` takes it.
The machines are paid for all of --hours; their cost is shared by seconds of work, to the last nano-dollar.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from puna.cli.common import add_json, print_json, print_table, printable
from puna.cli.costs.common import add_chip, chip_of, rate_of, text_of, warn
from puna.core import BadInput

_SQLITE = b"SQLite format 3\0"

HELP = "gross margin of each tenant and model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="LEDGER", help="CSV of `puna usage --csv`, or a database: its file or URL")
    add("--since", metavar="TIME", help="of a database: the first day or time that counts")
    add("--until", metavar="TIME", help="of a database: the first day or time that does not")
    add("--hours", type=float, required=True, metavar="N", help="that the machines were paid for")
    add("--n", type=int, default=1, metavar="N", help="accelerators or machines (default: 1)")
    add_chip(parser)
    add("--price-list", type=Path, metavar="FILE", help="check what was charged against this TOML file")
    add("--gap", type=float, default=24.0, metavar="HOURS", help="without calls is refused (default: 24)")
    add("--allow-gaps", action="store_true", help="say them and go on")
    add_json(parser)


def _ledger(args: argparse.Namespace) -> tuple[str, dict[str, int] | None]:
    """Its rows as `puna usage --csv` writes them, and of a database the sums by tenant that it makes itself.

    Raises BadInput.
    """
    name: str = args.file
    path, is_url = Path(name), "://" in name
    stored = name.partition("sqlite:///")[2]
    if stored and not Path(stored).is_file():  # opening it would make it
        raise BadInput(f"there is no database {stored}; `puna usage` opens the one of `puna serve`")
    if is_url or _is_sqlite(path):
        from puna.server.storage.database import open_database
        from puna.server.tenants.queries import Filters, export_csv, moment, totals

        since, until = (moment(text) if text else None for text in (args.since, args.until))
        filters = Filters(since=since, until=until)
        database = open_database(name if is_url else f"sqlite:///{path.absolute()}")
        try:
            text = "".join(export_csv(database, filters))
            sums = {total.group[0]: total.cost_nano for total in totals(database, ("tenant",), filters)}
        finally:
            database.close()
        return text, sums
    if args.since is not None or args.until is not None:
        raise BadInput(f"--since and --until are of a database; {name} has the rows that it has")
    return text_of(path), None


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False  # which is said when it is read


def run(args: argparse.Namespace) -> int:
    from puna.economics.hardware import positive
    from puna.economics.margin import gaps, margins, read_ledger, reconciled
    from puna.server.tenants.prices import dollars, read_prices

    text, sums = _ledger(args)
    entries = read_ledger(text, str(args.file))
    holes = gaps(entries, positive("--gap", args.gap))
    span = (max(e.at for e in entries) - min(e.at for e in entries)).total_seconds() / 3600
    if holes and not args.allow_gaps:
        raise BadInput(f"{args.file}: {holes[0]}; is a part missing? --allow-gaps goes on")
    if positive("--hours", args.hours) < span:
        raise BadInput(f"the ledger spans {span:.1f} hours, --hours must be as many or more")
    if args.n < 1:
        raise BadInput(f"--n must be 1 or more, got {args.n}")
    usd_h, rate, stale = rate_of(args, chip_of(args))
    machine = Decimal(str(usd_h)) * Decimal(str(args.hours)) * args.n
    pricing = read_prices(args.price_list).cost if args.price_list else None
    found = margins(entries, machine, pricing)
    if sums is not None:
        reconciled(found, sums)
    notes = [*holes, *stale]
    if found.repriced:
        off = found.price_difference / 1e9
        notes.append(f"{found.repriced} calls cost otherwise by the price list, ${off:+.9f} in all")
    lines = [
        {**asdict(line), "profit": line.profit, "margin": line.margin, "usd_per_mtok": line.usd_per_mtok}
        for line in found.lines
    ]
    if args.json:
        report: dict[str, Any] = {
            "unit": "nano-dollars", "rate": rate, "lines": lines, "revenue": found.revenue,
            "cost": found.cost, "repriced": found.repriced, "price_difference": found.price_difference,
            "notes": notes,
        }  # fmt: skip
        print_json(report)
        return 0

    def cells(names: list[str], calls: int, revenue: int, cost: int, per_mtok: float | None) -> list[str]:
        profit = revenue - cost
        sign = "-" if profit < 0 else ""
        share = f"{profit / revenue:.1%}" if revenue else "-"
        money = [f"${dollars(revenue)}", f"${dollars(cost)}", f"{sign}${dollars(abs(profit))}"]
        each = "-" if per_mtok is None else f"${per_mtok:,.2f}"
        return [*names, f"{calls:,}", *money, share, each]

    rows = [
        cells([printable(x.tenant), printable(x.model)], x.calls, x.revenue, x.cost, x.usd_per_mtok)
        for x in found.lines
    ]
    output = sum(x.output for x in found.lines)
    total = found.cost / output / 1000 if output else None
    rows.append(cells(["total", ""], len(entries), found.revenue, found.cost, total))
    print_table(["TENANT", "MODEL", "CALLS", "REVENUE", "COST", "PROFIT", "MARGIN", "COST OF M OUT"], rows)
    warn(notes)
    return 0
