"""What a feature earns, from a randomised experiment: FILE has user, arm, revenue, and perhaps pre, exposed.

  puna cost lift users.csv --cost-user 0.12 --split 0.95

Refuses where the arms are not what chance gives. Says what it could have found before what it found, and the
lift at which the feature pays first. --self-test runs A/A experiments through the same analysis.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from puna.cli.common import add_json, print_facts, print_json
from puna.cli.costs.common import text_of
from puna.core import BadInput

HELP = "what a feature earns, from a randomised experiment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", nargs="?", type=Path, help="CSV with a row for each user")
    add("--split", type=float, metavar="F", help="share that was to be treated (default: 0.5)")
    add("--alpha", type=float, default=0.05, metavar="A", help="false positives (default: 0.05)")
    add("--power", type=float, metavar="P", help="of the smallest detectable effect (0.8)")
    add("--planned", type=int, metavar="N", help="users planned beforehand: adds a confidence sequence")
    add("--cost-user", type=float, metavar="USD", help="assumed: what a treated user costs in that time")
    add("--variable-share", type=float, metavar="F", help="assumed: of revenue, what earning it costs (0)")
    add("--self-test", type=int, metavar="RUNS", help="A/A experiments instead of FILE")
    add("--seed", type=int, default=0, metavar="N", help="of --self-test (default: 0)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.economics.lift import Costs, analyse, read_experiment, self_test

    if (args.file is None) == (args.self_test is None):
        raise BadInput("give FILE or --self-test RUNS")
    if args.self_test is not None:
        only = ("split", "power", "planned", "cost_user", "variable_share")
        if given := [name for name in only if getattr(args, name) is not None]:
            raise BadInput(
                f"--{given[0].replace('_', '-')} is of FILE; --self-test makes its own experiments"
            )
        if not 1 <= args.self_test <= 100_000:
            raise BadInput(f"--self-test must be from 1 to 100,000, got {args.self_test}")
        found = asdict(self_test(args.self_test, 1000, args.alpha, args.seed))
        (print_json if args.json else print_facts)(found)
        return 0
    if args.variable_share is not None and args.cost_user is None:
        raise BadInput("--variable-share belongs to --cost-user; give both")
    costs = None if args.cost_user is None else Costs(args.cost_user, args.variable_share or 0.0)
    e = read_experiment(text_of(args.file), str(args.file))
    split, power = (value if given is None else given
                    for value, given in ((0.5, args.split), (0.8, args.power)))  # fmt: skip
    report = analyse(e, split, args.alpha, power, args.planned, costs)
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _print(report: dict[str, Any]) -> None:
    m = report["measured"]
    if report["assumed"]:
        lift = "" if report["break_even_lift"] is None else f" ({report['break_even_lift']:.2%})"
        print(f"pays from ${report['break_even_usd']:.4f} a user{lift} on: {report['verdict']}\n")
    best = m["cuped"] or m["intention_to_treat"]
    print("measured")
    print_facts(
        {
            "  users": f"{m['users']['control']:,} control, {m['users']['treatment']:,} treatment",
            "  sample ratio": f"p = {m['sample_ratio_p']:.3f}",
            "  could find": f"${m['detectable_usd']:.4f} a user{_relative(m['detectable_lift'])} or more",
            "  control": f"${m['control_usd']:.4f} a user",
            "  as assigned": _interval(m["intention_to_treat"]),
            "  with CUPED": m["cuped"] and f"{_interval(best)}, {m['variance_removed']:.0%} less variance",
            "  at any look": m.get("confidence_sequence")
            and "${:.4f} to ${:.4f}".format(*m["confidence_sequence"]),
            "  lift": None
            if m["lift"] is None
            else "{:.2%} ({:.2%} to {:.2%})".format(m["lift"], *m["lift_interval"]),
        }
    )
    if n := m.get("exposed_in_control"):
        print(f"note: {n:,} users of the control used it as well, which makes the difference smaller")
    if report["not_causal_exposed_usd"] is not None:
        usd = report["not_causal_exposed_usd"]
        print(f"not causal: treated users who used it have ${usd:.4f} more than control; they chose to")
    if report["assumed"]:
        print("assumed")
        print_facts({f"  {name}": value for name, value in report["assumed"].items()})


def _relative(value: float | None) -> str:
    return "" if value is None else f" ({value:.2%})"


def _interval(e: dict[str, Any]) -> str:
    low, high = e["interval"]
    return f"${e['usd_user']:.4f} a user (${low:.4f} to ${high:.4f}, p = {e['p']:.3f})"
