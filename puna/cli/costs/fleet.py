"""What a fleet of one kind of accelerator can serve and train.

puna cost fleet llama-3.3-70b-instruct --accelerator h100 --n 1000 --weights fp8 --cache fp8
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from puna.cli.common import add_json, print_facts, print_json
from puna.cli.costs.common import add_chip, chip_of, rate_of, warn
from puna.cli.costs.serve import add_deployment, deployment
from puna.core import BadInput

HELP = "what a fleet of accelerators can serve and train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="name of the catalog, or a config.json")
    add_chip(parser)
    add("--n", type=int, required=True, metavar="N", help="accelerators")
    add("--per-copy", type=int, metavar="N", help="of one copy (default: as few as hold it)")
    add_deployment(parser)
    add("--utilisation", type=float, default=0.5, metavar="U", help="of serving (default: 0.5)")
    add("--days", type=float, default=30.0, metavar="N", help="of training (default: 30)")
    add("--mfu", type=float, default=0.4, metavar="F", help="of training (default: 0.4)")
    add("--goodput", type=float, default=0.9, metavar="F", help="of training (default: 0.9)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.economics.calibrate import kind_of, shipped_factor
    from puna.economics.fleet import best, serve, trainable_tokens
    from puna.economics.hardware import positive
    from puna.model.sizes import n_active

    if args.n < 1:
        raise BadInput(f"--n must be 1 or more, got {args.n}")
    chip = chip_of(args)
    usd_h, rate, stale = rate_of(args, chip)
    d = deployment(args, chip, 1 if args.per_copy is None else args.per_copy)
    if args.per_copy is None:
        d = best(d, args.n)
    factor = shipped_factor(kind_of(d.config, args.batch))
    served = serve(d, args.n, factor, args.utilisation)
    days = positive("--days", args.days)
    tokens = trainable_tokens(n_active(d.config), chip, args.n, days, args.mfu, args.goodput)
    report: dict[str, Any] = {
        "model": args.model,
        "accelerator": chip.name,
        "n": args.n,
        "usd_day": usd_h * args.n * 24,
        "rate": rate,
        "serve": {**asdict(served), "tokens_day": served.tok_s * 86400, "speed_from": factor.origin},
        "train": {"days": days, "tokens": tokens, "mfu": args.mfu, "goodput": args.goodput},
        "notes": stale,
    }
    if args.json:
        print_json(report)
        return 0
    chosen = " (which serves most)" if args.per_copy is None else ""
    print_facts(
        {
            "fleet": f"{args.n:,} x {chip.name}, ${report['usd_day']:,.0f} a day ({rate})",
            "serves": f"{served.copies:,} copies of {served.per_copy}{chosen}, "
            f"{served.tok_s:,.0f} output tokens/s "
            f"({served.low:,.0f} to {served.high:,.0f}) at {args.utilisation:.0%} use; {served.idle} left",
            "a day": f"{served.tok_s * 86400 / 1e9:,.2f} billion output tokens",
            "or trains": f"{tokens / 1e12:,.2f} T tokens in {days:g} days at {args.mfu:.0%} of the peak",
        }
    )
    warn(stale)
    return 0
