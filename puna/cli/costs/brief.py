"""One dated page on the state of the Llama ecosystem, from the data of the package: models, licences, hosts
and prices, end dates, hosting oneself, training, labs, and the claims of a profile with their verdicts.

  puna cost brief                          Markdown on stdout
  puna cost brief --out page               page/llama-brief.md and page/llama-brief.html
  puna cost brief --date 2027-03-31        as of a later day: what will have ended by then

The same data and day make the same page. Nothing is fetched; `--prices FILE` brings newer prices.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

from puna.cli.common import add_json, print_json
from puna.cli.costs.common import today, warn
from puna.cli.costs.compare import add_prices, rows_of
from puna.core import BadInput, BadValue

HELP = "a dated page on the state of the Llama ecosystem"

_NAME = "llama-brief"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write Markdown and HTML there")
    parser.add_argument("--date", metavar="DAY", help="of the page, as YYYY-MM-DD (default: today)")
    add_prices(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.brief import collect, html, markdown, page, plain

    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise BadInput(f"--out must be a folder, and {args.out} is a file")
    made = page(collect(rows_of(args.prices), _day(args.date)))
    if args.json:
        print_json(plain(made))
    if args.out is None:
        if not args.json:
            print(markdown(made), end="")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("md", markdown(made)), ("html", html(made))):
        path = args.out / f"{_NAME}.{suffix}"
        path.write_text(text, encoding="utf-8")
        print(path, file=sys.stderr if args.json else sys.stdout)
    warn(made.notes)
    return 0


def _day(text: str | None) -> date:
    if text is None:
        return today()
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadValue(f"--date must be a day as YYYY-MM-DD, got {text!r:.60}") from None
