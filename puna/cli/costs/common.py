"""What the commands of `puna cost` share: accelerators with their rates, pictures, warnings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from puna.cli.common import not_text, printable
from puna.core import BadInput, BadValue

if TYPE_CHECKING:
    from puna.economics.hardware import Chip
    from puna.economics.plot import Level
    from puna.model.config import ModelConfig


def today() -> date:
    return datetime.now(UTC).date()


def add_chip(parser: argparse.ArgumentParser, default: str | None = "h100") -> None:
    add = parser.add_argument
    add("--accelerator", metavar="NAME", default=default, help=f"of the table (default: {default})")
    add("--set", metavar="CELL=VALUE", action="append", default=[], help="overrule a cell of the table")
    add(
        "--rate",
        metavar="RATE",
        help="dollars an hour of one, or rent_3y, rent, rent_low, rent_high, own, neocloud "
        "(default: rent_3y, else rent)",
    )
    add("--capex", type=float, metavar="USD", help="own it: what one costs with its share of the server")
    add("--years", type=float, default=4.0, metavar="N", help="of --capex: recovery (default: 4)")
    add("--interest", type=float, default=0.10, metavar="R", help="of --capex: a year (default: 0.1)")
    add("--kw", type=float, metavar="KW", help="of --capex: power of one (default: all_in_kw of the table)")
    add("--pue", type=float, default=1.0, metavar="X", help="of the facility, where --kw lacks it (1)")
    add("--kwh", type=float, default=0.087, metavar="USD", help="a kilowatt-hour (default: 0.087)")
    add("--opex", type=float, default=0.0, metavar="USD", help="of --capex: other costs a year (default: 0)")


def chip_of(args: argparse.Namespace) -> Chip:
    from puna.economics.hardware import chip

    values = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set takes CELL=VALUE, got {text!r}")
        values[name] = number(f"--set {name}", value)
    return chip(args.accelerator).with_values(values, today())


def number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadValue(f"{name} must be a number, got {text!r}") from None


def rate_of(args: argparse.Namespace, chip: Chip) -> tuple[float, str, list[str]]:
    """Dollars an hour of one accelerator, in words, and what is stale about it."""
    from puna.economics.hardware import RATES, Ownership, positive

    if args.capex is not None:
        if args.rate is not None:
            raise BadInput("--capex is for owning, --rate for renting; give one")
        kw = args.kw if args.kw is not None else chip.need("all_in_kw")
        own = Ownership(args.capex, args.years, args.interest, kw, args.pue, args.kwh, args.opex)
        return own.usd_h, f"owned for {args.years:g} years at {args.interest:.0%}", []
    kind = args.rate if args.rate is not None else chip.best_rate()
    if kind in RATES:
        cell = f"{kind}_usd_h"
        value = chip.rate(kind)
        source = chip.cells[cell].source
        page = f", {source.url}" if source.url else ""
        return value, f"{kind}, {source.title} ({source.date}){page}", chip.stale([cell], today())
    if not kind[:1].isdigit() and not kind.startswith((".", "-")):
        chip.rate(kind)  # names what there is
    return positive("--rate", number("--rate", kind)), "your rate", []


def config_of(name: str) -> ModelConfig:
    """Of the catalog, or of a config.json, params.json folder or file. Raises UnknownModel and BadFile."""
    from puna.model import catalog
    from puna.model.config import from_hf

    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        from puna.economics.hardware import load_json

        return from_hf(load_json(text_of(path), name))
    return catalog.find(name).config


def text_of(path: Path) -> str:
    """Of a file that the user names. Raises BadInput where it is none or holds no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets begin a CSV with a mark
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} {not_text(error)}") from None
    except OSError as error:
        raise BadInput(f"{path} must be a file that can be read: {error.strerror or error}") from None


def warn(notes: Sequence[str]) -> None:
    """Lines behind a report; on stderr, so that they reach people and no pipes."""
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)


def add_plot(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"draw a PNG of {what}, or - the terminal")


def check_plot(args: argparse.Namespace) -> None:
    """Raise BadInput for a picture that would have no place; before any work."""
    if args.plot is None:
        return
    if str(args.plot) == "-":
        if args.json:
            raise BadInput("--json has stdout for itself; give --plot a FILE")
    elif args.plot.suffix.lower() != ".png":
        raise BadInput(f"--plot draws a PNG: name it FILE.png, or - for the terminal, got {str(args.plot)!r}")
    elif not args.plot.absolute().parent.is_dir():
        raise BadInput(f"--plot {args.plot}: its folder does not exist; make it first")


def draw(path: Path | None, curve: Sequence[tuple[float, float]], title: str, x: str, y: str,
         levels: Sequence[Level] = ()) -> None:  # fmt: skip
    from puna.economics.plot import png, terminal

    if path is None:
        return
    if str(path) == "-":
        print()
        print(terminal(curve, title, x, y, levels))
        return
    png(path, curve, title, x, y, levels)
