"""What training a model takes: operations, hours, energy, emissions, dollars, failures and checkpoints.

  puna cost train llama-3.1-405b --accelerator h100 --n 16384 --mfu 0.4
  puna cost train llama-3.2-1b --tokens 1e12 --n 64 --mfu 0.4 --mtbf 50000

Beside the plan stands what the model's own card reports, where it does.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, print_facts, print_json
from puna.cli.costs.common import add_chip, chip_of, config_of, rate_of, today, warn
from puna.core import BadInput

if TYPE_CHECKING:
    from puna.economics.training import Reported

HELP = "what training a model takes, and took"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="name of the catalog, llama-4-behemoth, or a config.json")
    add("--tokens", type=float, metavar="N", help="15e12 (default: those of the card)")
    add("--sequence", type=int, default=8192, metavar="N", help="tokens of a sequence (default: 8192)")
    add_chip(parser)
    add("--n", type=int, default=1024, metavar="N", help="accelerators (default: 1024)")
    add("--mfu", type=float, default=0.4, metavar="F", help="share of the peak in steady state (0.4)")
    add("--fp8", action="store_true", help="peak of fp8 instead of bf16")
    add("--mtbf", type=float, metavar="HOURS", help="between failures of one accelerator (default: none)")
    add("--save", type=float, default=60.0, metavar="S", help="a checkpoint stops training (60)")
    add("--restart", type=float, default=600.0, metavar="S", help="after a failure (default: 600)")
    add("--tonnes-per-mwh", type=float, metavar="T", help="of CO2 equivalent (default: the card's)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.economics.training import Failures, Run, attention_share, run_of
    from puna.model.sizes import n_active

    made = run_of(args.model)
    behemoth = made is not None and not made.models
    config = None if behemoth else config_of(args.model)
    active = made.active if config is None and made else float(n_active(config)) if config else 0.0
    tokens = args.tokens if args.tokens is not None else made.tokens if made else None
    if tokens is None:
        raise BadInput(f"no card reports how many tokens trained {args.model}; say --tokens N")
    chip = chip_of(args)
    usd_h, rate, stale = rate_of(args, chip)
    failures = None if args.mtbf is None else Failures.of(args.n, args.mtbf, args.save, args.restart)
    intensity = args.tonnes_per_mwh
    if intensity is None and made is not None:
        intensity = made.tonnes_per_mwh
    arithmetic = "fp8_tflops" if args.fp8 else "bf16_tflops"
    plan = Run(active, tokens, chip, args.n, args.mfu, arithmetic, usd_h, args.pue, args.kwh, intensity,
               failures.goodput if failures else 1.0)  # fmt: skip
    extra = None if config is None else attention_share(config, args.sequence, active)
    report: dict[str, Any] = {
        "model": args.model,
        "active_parameters": active,
        "tokens": tokens,
        "flops_weights": plan.flops,
        "flops_with_attention": None if extra is None else plan.flops * (1 + extra),
        "sequence": args.sequence,
        "accelerator": chip.name,
        "n": args.n,
        "usd_h": usd_h,
        "rate": rate,
        "ideal": {
            "hours": plan.ideal_hours,
            "usd": plan.ideal_hours * usd_h,
        },
        "planned": {
            "goodput": plan.goodput,
            "hours": plan.hours,
            "days": plan.days,
            "mwh": plan.mwh,
            "tonnes_co2e": plan.tonnes,
            "energy_usd": None if plan.mwh is None else plan.mwh * 1000 * args.kwh,
            "usd": plan.usd,
        },
        "checkpoints": failures
        and {"mtbf_h": failures.mtbf_h, "young_s": failures.young_s, "daly_s": failures.daly_s},
        "reported": made and _reported(made, usd_h),
        "notes": stale,
    }
    if args.json:
        print_json(report)
    else:
        _print(report)
        warn(stale)
    return 0


def _reported(made: Reported, usd_h: float) -> dict[str, Any]:
    return {
        "run": made.name,
        "hours": made.hours,
        "tflops": made.achieved_tflops,
        "mfu": made.mfu,
        "mwh": made.mwh,
        "tonnes_co2e": made.tonnes,
        "usd": made.usd(usd_h),
        "source": made.source.title,
        "url": made.source.url,
        "date": str(made.source.date),
        "age_days": (today() - made.source.date).days,
    }


def _print(report: dict[str, Any]) -> None:
    plan, made, saved = report["planned"], report["reported"], report["checkpoints"]
    print_facts(
        {
            "model": f"{report['model']}, {report['active_parameters'] / 1e9:.1f} B active, "
            f"{report['tokens'] / 1e12:g} T tokens",
            "operations": f"{report['flops_weights']:.3g} of weights"
            + (
                f", {report['flops_with_attention']:.3g} with attention at {report['sequence']:,}"
                if report["flops_with_attention"]
                else ""
            ),
            "machines": f"{report['n']:,} x {report['accelerator']} at ${report['usd_h']:.2f}/h "
            f"({report['rate']})",
            "ideal": f"{report['ideal']['hours']:,.0f} hours, ${report['ideal']['usd']:,.0f}",
            "planned": f"{plan['hours']:,.0f} hours in {plan['days']:.1f} days, ${plan['usd']:,.0f} "
            f"(goodput {plan['goodput']:.1%})",
            "energy": None if plan["mwh"] is None else f"{plan['mwh']:,.0f} MWh, ${plan['energy_usd']:,.0f}",
            "emissions": None if plan["tonnes_co2e"] is None else f"{plan['tonnes_co2e']:,.0f} t CO2e",
            "checkpoints": saved
            and f"every {saved['daly_s'] / 60:.1f} minutes (Young: {saved['young_s'] / 60:.1f}), "
            f"a failure every {saved['mtbf_h']:.1f} hours",
            "as reported": made
            and f"{made['hours']:,.0f} hours, {made['tflops']:.0f} TFLOPS ({made['mfu']:.1%}), "
            f"{made['mwh']:,.0f} MWh, ${made['usd']:,.0f} at the same rate ({made['source']}"
            + (f", {made['url']})" if made["url"] else ")"),
        }
    )
