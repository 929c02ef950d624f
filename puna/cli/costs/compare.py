"""Host a model yourself, or buy its tokens? Costs beside every host's price, and where the answer flips.

  puna cost compare llama-3.3-70b-instruct --accelerator b200 --utilisation 0.3 --plot -

A price is that of a million tokens out and of the tokens in that go with them. Prices are the shipped ones or
those of --prices FILE; nothing is fetched.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, print_facts, print_json, print_table, printable
from puna.cli.costs.common import add_chip, add_plot, check_plot, chip_of, draw, rate_of, text_of, today, warn
from puna.core import BadFile, BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from puna.economics.prices import Row

HELP = "host it yourself or buy, and where the answer flips"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="name of the catalog")
    add_chip(parser, default=None)
    add("--utilisation", type=float, default=0.3, metavar="U", help="share of the time in use (0.3)")
    add("--tok-s", type=float, metavar="N", help="your output tokens a second (default: as published)")
    add("--n", type=int, metavar="N", help="of --tok-s: accelerators (default: 1)")
    add("--ratio", type=float, metavar="R", help="of --tok-s: tokens in for each token out (default: 1)")
    add_prices(parser)
    add_plot(parser, "cost against utilisation, with prices")
    add_json(parser)


def add_prices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prices", type=Path, metavar="FILE", help="CSV of `puna cost update` (shipped)")


def rows_of(path: Path | None) -> Sequence[Row]:
    from puna.economics.prices import read_rows, shipped

    if path is None:
        return shipped()
    rows = read_rows(text_of(path), str(path))
    for row in rows:
        if row.fetched > today():
            raise BadFile(f"{path}: a row of {row.provider} was fetched on {row.fetched}, still to come")
    return rows


def run(args: argparse.Namespace) -> int:
    from puna.economics.compare import Speed, compare, measured_speed, warnings
    from puna.economics.plot import Level
    from puna.economics.prices import listed

    check_plot(args)
    if args.tok_s is None and (args.n is not None or args.ratio is not None):
        raise BadInput("--n and --ratio say what --tok-s is of; give --tok-s")
    rows = listed(args.model, rows_of(args.prices), today())
    if args.tok_s is None:
        speed = measured_speed(args.model, args.accelerator)
    else:
        ratio = 1.0 if args.ratio is None else args.ratio
        speed = Speed(
            args.tok_s, 1 if args.n is None else args.n, args.accelerator or "h100", ratio, "--tok-s"
        )
    args.accelerator = speed.accelerator
    chip = chip_of(args)
    usd_h, rate, stale = rate_of(args, chip)
    found = compare(speed, usd_h, args.utilisation, rows)
    if not found.offers:
        raise BadInput(f"no host's price of {args.model} is known that still holds")
    report: dict[str, Any] = {
        "model": args.model,
        "accelerator": chip.name,
        "n": speed.n,
        "usd_h": usd_h,
        "rate": rate,
        "output_tok_s": speed.tok_s,
        "speed_from": speed.origin,
        "denominator": f"a million tokens out and {speed.ratio:g} million in",
        "utilisation": args.utilisation,
        "own_usd": found.own_usd,
        "own_usd_at_full_use": found.full_usd,
        "offers": [{**asdict(offer), "answer": offer.answer} for offer in found.offers],
        "notes": [*warnings(rows, today()), *stale],
    }
    if args.json:
        print_json(report)
    else:
        _print(report)
        warn(report["notes"])
    offers = found.offers
    hosts = [offer for offer in offers if "router" not in offer.flags] or offers
    levels = [Level(f"{o.provider} {o.model_id}", o.usd, o.flip) for o in (hosts[0], hosts[len(hosts) // 2])]
    draw(
        args.plot, found.curve(), f"{args.model} on {chip.name}", "utilisation", "$ per M in and out", levels
    )
    return 0


def _print(report: dict[str, Any]) -> None:
    print_facts(
        {
            "model": f"{report['model']} on {report['n']} x {report['accelerator']}",
            "rate": f"${report['usd_h']:.2f} an hour each ({report['rate']})",
            "speed": f"{report['output_tok_s']:,.0f} output tokens/s ({report['speed_from']})",
            "own cost": f"${report['own_usd']:.3f} for {report['denominator']} at "
            f"{report['utilisation']:.0%} use, ${report['own_usd_at_full_use']:.3f} at full use",
        }
    )
    print()
    rows = [
        [
            printable(offer["provider"]),
            printable(offer["model_id"]),
            f"${offer['usd']:.2f}",
            "never" if offer["flip"] is None else f"{offer['flip']:.1%}",
            f"{offer['margin']:.0%}",
            offer["answer"],
            ", ".join(offer["flags"]),
        ]
        for offer in report["offers"]
    ]
    print_table(["HOST", "MODEL", "PRICE", "FLIPS AT", "MARGIN", "ANSWER", "FLAGS"], rows)
