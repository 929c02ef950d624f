"""What hosts ask for a model: every known price with its date and source, and what is suspicious about it.

  puna cost market llama-3.3-70b-instruct

Free and unpriced rows are shown and stand in no median, nor do ended, replaced and routers' prices.
"""

from __future__ import annotations

import argparse
from typing import Any

from puna.cli.common import add_json, print_json, print_table, printable
from puna.cli.costs.common import today, warn
from puna.cli.costs.compare import add_prices, rows_of

HELP = "what hosts ask for a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="name of the catalog, or a group such as Llama-3.3-70B"
    )
    add_prices(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.economics.compare import warnings
    from puna.economics.prices import listed, medians

    items = listed(args.model, rows_of(args.prices), today())
    middle = medians(items)
    rows: list[dict[str, Any]] = [
        {
            "provider": i.row.provider,
            "model_id": i.row.model_id,
            "kind": i.row.kind,
            "input": None if i.row.input is None else str(i.row.input),
            "output": None if i.row.output is None else str(i.row.output),
            "currency": i.row.currency,
            "valid_from": None if i.row.valid_from is None else str(i.row.valid_from),
            "valid_to": None if i.row.valid_to is None else str(i.row.valid_to),
            "source": i.row.source,
            "fetched": str(i.row.fetched),
            "url": i.row.url,
            "flags": list(i.flags),
        }
        for i in items
    ]
    median = None
    if middle:
        median = {"input": str(middle[0]), "output": str(middle[1]), "rows": middle[2]}
    if args.json:
        notes = warnings(items, today())
        print_json({"model": args.model, "median": median, "prices": rows, "notes": notes})
        return 0
    cells = [[printable(r["provider"]), printable(r["model_id"]), r["input"] or "-", r["output"] or "-",
              f"{r['source']} {r['fetched']}", ", ".join(r["flags"]), printable(r["url"]) or "-"]
             for r in rows]  # fmt: skip
    print_table(["HOST", "MODEL", "$/M IN", "$/M OUT", "SOURCE", "FLAGS", "PAGE"], cells)
    if median:
        print(f"\nmedian of {median['rows']}: ${median['input']} in, ${median['output']} out")
    warn(warnings(items, today()))
    return 0
