"""Dollars for a million tokens of a model that you serve: from the machine's limit, or from a measured speed.

  puna cost serve llama-3.3-70b-instruct --accelerator h100 --n 2 --weights fp8 --cache fp8
  puna cost serve smollm2 --bench bench.json --memory-gb 32 --rate 0.30

Without a speed, the roofline times the efficiency of published measurements; --bench takes that of your own
`puna bench --json` and its machine. MODEL is a name of the catalog or a config.json.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, print_facts, print_json, print_table
from puna.cli.costs.common import (
    add_chip,
    add_plot,
    check_plot,
    chip_of,
    config_of,
    draw,
    rate_of,
    text_of,
    today,
    warn,
)
from puna.core import BadInput

if TYPE_CHECKING:
    from puna.economics.calibrate import Bench, Factor
    from puna.economics.hardware import Chip
    from puna.economics.roofline import Bound, Deployment
    from puna.economics.serving import Money, Point

HELP = "dollars for a million tokens that you serve"


def add_deployment(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--weights", metavar="FORMAT", default="bf16", help="bf16, fp8, int8, fp4, int4 (default: bf16)")
    add("--cache", metavar="FORMAT", default="bf16", help="of keys and values: bf16, fp8, q8_0 (bf16)")
    add("--prompt", type=int, default=1000, metavar="N", help="tokens of a prompt (default: 1000)")
    add("--cached", type=int, default=0, metavar="N", help="of those, in the prefix cache (default: 0)")
    add("--output", type=int, default=1000, metavar="N", help="tokens of an answer (default: 1000)")
    add("--batch", type=int, metavar="N", help="requests at once (default: what memory holds)")
    add("--memory-fraction", type=float, default=0.9, metavar="F", help="for weights and cache (0.9)")
    add("--link", type=float, metavar="GB/S", help="of one accelerator to others (default: not counted)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="name of the catalog, or a config.json")
    add_chip(parser)
    add("--n", type=int, default=1, metavar="N", help="accelerators of one copy, tensor parallel (1)")
    add("--copies", type=int, default=1, metavar="N", help="of the model (default: 1)")
    add_deployment(parser)
    add("--utilisation", type=float, default=1.0, metavar="U", help="share of the time that is used (1)")
    add("--tok-s", type=float, metavar="N", help="measured output tokens a second of one copy")
    add("--loadtest", type=Path, metavar="FILE", help="speed of one copy from `puna loadtest --json`")
    add("--bench", type=Path, metavar="FILE", help="`puna bench --json` of your machine, with --memory-gb")
    add("--memory-gb", type=float, metavar="GB", help="of --bench: memory for weights and cache")
    add("--pareto", action="store_true", help="speed of an answer against cost, over batches")
    add_plot(parser, "cost against utilisation, or with --pareto against speed")
    add_json(parser)


def deployment(args: argparse.Namespace, chip: Chip, n: int) -> Deployment:
    from puna.economics.roofline import Deployment

    return Deployment(
        config_of(args.model), chip, n, args.weights, args.cache, args.prompt, args.cached, args.output,
        args.batch, args.memory_fraction, args.link,
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from puna.economics.roofline import bound
    from puna.economics.serving import DENOMINATORS, Money, cost

    check_plot(args)
    chip, factor, bench = _machine(args)
    usd_h, rate, stale = rate_of(args, chip)
    limit = bound(deployment(args, chip, args.n))
    if args.copies < 1:
        raise BadInput(f"--copies must be 1 or more, got {args.copies}")
    money = Money(usd_h, args.n * args.copies, args.utilisation)
    speeds = _speeds(args, limit, factor)
    speed = speeds["mean"] * args.copies
    costs = {name: asdict(cost(limit, value, _per_copy(money, args)))
             for name, value in speeds.items()}  # fmt: skip
    points = _points(args, chip, factor, money) if args.pareto else []
    report: dict[str, Any] = {
        "model": args.model,
        "accelerator": chip.name,
        "n": args.n,
        "copies": args.copies,
        "usd_h": usd_h,
        "rate": rate,
        "utilisation": args.utilisation,
        "batch": limit.batch,
        "limit": {"output_tok_s": limit.output_tok_s, "by": limit.limit},
        "output_tok_s": {name: value * args.copies for name, value in speeds.items()},
        "speed_from": _origin(args, factor),
        "usd_per_mtok": costs,
        "definitions": DENOMINATORS,
        "bench_usd_per_mtok": bench and _measured(bench, usd_h, args.utilisation),
        "pareto": [asdict(point) for point in points],
        "notes": [*limit.notes, *stale],
    }
    if args.json:
        print_json(report)
    else:
        _print(report, speed)
        warn(report["notes"])
    _plot(args, limit, speeds["mean"], money, points)
    return 0


def _measured(bench: Bench, usd_h: float, utilisation: float) -> dict[str, Any]:
    """Of the model and the jobs that the bench measured: nothing here is predicted."""
    from puna.economics.serving import usd_per_mtok

    decode = {
        str(streams): usd_per_mtok(tok_s, usd_h, 1, utilisation) for streams, tok_s in bench.decode.items()
    }
    prefill = usd_per_mtok(bench.prefill_tok_s, usd_h, 1, utilisation)
    return {"model": bench.model, "prefill": prefill, "decode_by_streams": decode}


def _origin(args: argparse.Namespace, factor: Factor) -> str:
    if args.loadtest is not None:
        return str(args.loadtest)
    return "--tok-s" if args.tok_s is not None else factor.origin


def _per_copy(money: Money, args: argparse.Namespace) -> Money:
    from puna.economics.serving import Money

    return Money(money.usd_h, args.n, money.utilisation)


def _machine(args: argparse.Namespace) -> tuple[Chip, Factor, Bench | None]:
    from puna.economics.calibrate import kind_of, read_bench, shipped_factor
    from puna.economics.hardware import Source

    if args.bench is None:
        if args.memory_gb is not None:
            raise BadInput("--memory-gb belongs to --bench; of an accelerator say --set memory_gb=N")
        return chip_of(args), shipped_factor(kind_of(config_of(args.model), args.batch)), None
    if args.memory_gb is None:
        raise BadInput("--bench needs --memory-gb, how much memory that machine has for the model")
    if args.set or args.accelerator != "h100":
        raise BadInput("--bench brings its own machine; leave out --accelerator and --set")
    if args.rate is None and args.capex is None:
        raise BadInput("--bench needs --rate DOLLARS or --capex, what that machine costs")
    text = text_of(args.bench)
    bench = read_bench(text, str(args.bench), args.memory_gb, Source("your bench", today()))
    return bench.chip, bench.factor(args.batch), bench


def _speeds(args: argparse.Namespace, limit: Bound, factor: Factor) -> dict[str, float]:
    """Output tokens per second of one copy."""
    from puna.economics.calibrate import predicted

    if args.loadtest is not None:
        if args.tok_s is not None:
            raise BadInput("--tok-s and --loadtest both say the speed; give one")
        return {"mean": _loadtest_speed(args.loadtest)}
    return {"mean": args.tok_s} if args.tok_s is not None else predicted(limit, factor)


def _loadtest_speed(path: Path) -> float:
    """Output tokens per second of a load test. Raises BadFile for another file."""
    from puna.core import BadFile
    from puna.economics.hardware import load_json

    value = load_json(text_of(path), str(path)).get("output_tokens_per_s")
    if not isinstance(value, int | float) or value <= 0:
        raise BadFile(f"{path} must be a report of `puna loadtest --json` with output tokens")
    return float(value)


def _points(args: argparse.Namespace, chip: Chip, factor: Factor, money: Money) -> list[Point]:
    from puna.economics.roofline import bound
    from puna.economics.serving import Point, cost, pareto

    args = argparse.Namespace(**{**vars(args), "batch": None})
    most = deployment(args, chip, args.n).most
    points = []
    for batch in sorted({min(2**k, most) for k in range(most.bit_length() + 1)}):
        args.batch = batch
        limit = bound(deployment(args, chip, args.n))
        tok_s = limit.output_tok_s * min(factor.mean, 1.0)
        usd = cost(limit, tok_s, _per_copy(money, args)).output
        points.append(Point(batch, tok_s / batch, usd))
    return pareto(points)


def _print(report: dict[str, Any], speed: float) -> None:
    print_facts(
        {
            "model": f"{report['model']}, {report['copies']} x {report['n']} x {report['accelerator']}",
            "rate": f"${report['usd_h']:.2f} an hour each ({report['rate']})",
            "utilisation": f"{report['utilisation']:.0%}",
            "at once": f"{report['batch']:,} requests a copy",
            "limit": f"{report['limit']['output_tok_s']:,.0f} output tokens/s a copy, by "
            f"{report['limit']['by']}",
            "speed": f"{speed:,.0f} output tokens/s, from {report['speed_from']}",
        }
    )
    print()
    costs = report["usd_per_mtok"]
    names = list(costs)
    rows = []
    for kind, meaning in report["definitions"].items():
        values = [costs[name][kind] for name in names]
        rows.append([kind, *("-" if v is None else f"${v:.4f}" for v in values), meaning])
    print_table(["$/M TOKENS", *(f"AT {name.upper()} SPEED" for name in names), "DIVIDED BY"], rows)
    if own := report["bench_usd_per_mtok"]:
        decode = ", ".join(f"${v:.3f} with {k}" for k, v in own["decode_by_streams"].items())
        print(f"\nmeasured there, {own['model']}: ${own['prefill']:.3f} prefill; decode {decode} at once")
    if report["pareto"]:
        print()
        cells = [[str(p["batch"]), f"{p['user_tok_s']:.1f}", f"${p['usd_per_mtok']:.4f}"]
                 for p in report["pareto"]]  # fmt: skip
        print_table(["BATCH", "TOKENS/S OF AN ANSWER", "$/M OUTPUT"], cells)


def _plot(args: argparse.Namespace, limit: Bound, tok_s: float, money: Money, points: list[Point]) -> None:
    from puna.economics.serving import against_utilisation

    if points:
        curve = [(p.user_tok_s, p.usd_per_mtok) for p in points]
        draw(args.plot, curve, f"{args.model}: speed and cost", "tokens/s of an answer", "$/M output tokens")
    elif args.plot is not None:
        curve = against_utilisation(limit, tok_s, _per_copy(money, args))
        draw(args.plot, curve, f"{args.model}: cost", "utilisation", "$/M output tokens")
