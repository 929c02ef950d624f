"""Send load to an OpenAI-compatible server and report what its users would meet.

An open loop sends requests when they are due, whatever the server does (--rate, Poisson arrivals unless
--arrivals says otherwise); a closed loop keeps --concurrency clients busy. Lengths are like ShareGPT's unless
given. Latencies count from when a request was due. The same --seed sends the same load to any server.

  puna loadtest http://127.0.0.1:8080 --rate 2 --requests 200
  puna loadtest http://127.0.0.1:8080 --concurrency 8 --duration 60 --prefix-share 0.5 --plot load.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, print_facts, print_json, print_table, printable
from puna.cli.steps import step_bar
from puna.core import BadInput, BadValue, Cancelled, PunaError

if TYPE_CHECKING:
    from puna.loadtest import Load, Session, Tenant

HELP = "load on a server, and what its users would meet"

_REQUESTS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="http(s)://HOST:PORT of any OpenAI-compatible server")
    add_json(parser)
    _add_when(parser)
    _add_what(parser)
    _add_how(parser)


def _add_when(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rate", type=float, metavar="R", help="open loop: requests that arrive per second")
    add("--arrivals", choices=("poisson", "constant", "gamma"), help="of --rate (default: poisson)")
    add("--burstiness", type=float, metavar="CV", help="of gamma: 1 is Poisson, more is bursts (default: 2)")
    add("--concurrency", type=int, metavar="N", help="closed loop: clients that wait for their answers")
    add(
        "--ramp",
        type=float,
        default=0.0,
        metavar="S",
        help="of clients: they begin over S seconds (default: 0)",
    )
    add("--requests", type=int, metavar="N", help=f"stop after N (default: {_REQUESTS}, without --duration)")
    add("--duration", type=float, metavar="S", help="stop sending after S seconds, then wait for answers")
    add("--warmup", type=int, default=0, metavar="N", help="requests before it that do not count")
    add("--max-in-flight", type=int, default=1024, metavar="N", help="at once, at most (default: 1024)")
    add("--timeout", type=float, default=600.0, metavar="S", help="of one request (default: 600)")


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="NAME", help="as the server names it (default: first of /v1/models)")
    add("--endpoint", choices=("chat", "completions"), default="chat", help="(default: chat)")
    add("--prompt-tokens", type=int, metavar="N", help="of every prompt, about (default: like ShareGPT)")
    add("--output-tokens", type=int, metavar="N", help="of every answer, at most (default: like ShareGPT)")
    add("--trace", type=Path, metavar="FILE", help="requests as lines of JSON, instead of made ones")
    add("--prefix-share", type=float, default=0.0, metavar="F", help="part of each prompt that others share")
    add("--prefixes", type=int, default=8, metavar="K", help="how many such beginnings (default: 8)")
    add(
        "--key",
        action="append",
        default=[],
        metavar="[NAME=]KEY[*WEIGHT]",
        help="API key of a tenant, or @FILE that has it; repeat it for several tenants",
    )
    add("--temperature", type=float, default=0.0, metavar="T", help="(default: 0)")
    add("--ignore-end", action="store_true", help="answers of full length (ignore_eos)")
    add("--seed", type=int, default=0, metavar="N", help="same seed, same load (default: 0)")


def _add_how(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target-ttft", type=float, default=450.0, metavar="MS", help="of goodput (default: 450, MLPerf's)")
    add("--target-tpot", type=float, default=40.0, metavar="MS", help="of goodput (default: 40, MLPerf's)")
    add("--output", type=Path, metavar="FILE", help="write JSON there too, with a row for every request")
    add("--plot", type=Path, metavar="FILE", help="draw a PNG: distributions and load over time")
    add("--insecure", action="store_true", help="accept any certificate of an https server")
    add("--yes-remote", action="store_true", help="the server is another machine, and its owner agrees")


def run(args: argparse.Namespace) -> int:
    from puna.loadtest import Target, first_model, measure

    load = check_usage(args)  # what is wrong with it is said before anything is sent
    session, tenants = _session(args), load.tenants
    target = Target.of(args.url, verify=not args.insecure)
    if not args.yes_remote:
        target.require_local()
    if args.model is None:
        load = _load(args, first_model(target, tenants[0].key, min(args.timeout, 30.0)), tenants)
    with step_bar(load.expected_requests or ceil(load.duration or 0)) as tick:
        report = measure(target, load, session, lambda outcome: tick(outcome.error or ""))
    if not report.outcomes:
        raise Cancelled("interrupted before any request ended: nothing was measured")
    whole = report.to_json()
    if args.output:
        text = json.dumps(report.to_json(each=True), indent=1)
        args.output.write_text(text + "\n", encoding="utf-8")
    if args.plot:
        from puna.loadtest.plot import plot

        plot(report, args.plot)
    if args.json:
        print_json(whole)
    else:
        _print(whole)
    if report.run.interrupted:
        return Cancelled.exit_code
    return 0 if whole["succeeded"] else PunaError.exit_code


def check_usage(args: argparse.Namespace) -> Load:
    """What would be sent. Raises BadInput for options that make no sense together or say too little, and for
    files that cannot be written."""
    if args.concurrency is not None and (args.rate is not None or args.arrivals):
        raise BadInput("--concurrency is a closed loop, --rate and --arrivals are an open one; give one")
    if args.arrivals and args.rate is None:
        raise BadInput("--arrivals needs --rate, how many a second")
    if args.burstiness is not None and args.arrivals != "gamma":
        raise BadInput("--burstiness is that of --arrivals gamma; add it")
    if args.trace and (args.prompt_tokens or args.output_tokens or args.prefix_share):
        raise BadInput("a --trace has its own lengths and beginnings; leave out those options")
    for name in ("output", "plot"):
        path: Path | None = getattr(args, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise BadInput(f"--{name} {path}: its folder does not exist; make it first")
    if args.plot:
        from puna.loadtest.plot import require_matplotlib

        require_matplotlib()
    return _load(args, args.model or "", _tenants(args.key))


def _session(args: argparse.Namespace) -> Session:
    from puna.loadtest import Session, Targets

    return Session(
        timeout=args.timeout,
        warmup=args.warmup,
        max_in_flight=args.max_in_flight,
        targets=Targets(ttft=args.target_ttft / 1e3, tpot=args.target_tpot / 1e3),
        stop_on_interrupt=True,
    )


def _load(args: argparse.Namespace, model: str, tenants: Sequence[Tenant]) -> Load:
    from puna.loadtest import LengthMix, Load, read_trace

    trace = read_trace(args.trace) if args.trace else None
    timed = trace is not None and args.rate is None and args.concurrency is None
    requests = args.requests
    if requests is None and args.duration is None:
        requests = len(trace) if trace is not None else _REQUESTS
    return Load(
        model=model,
        endpoint=args.endpoint,
        arrivals="trace" if timed else args.arrivals or "poisson",
        rate=args.rate,
        burstiness=2.0 if args.burstiness is None else args.burstiness,
        concurrency=args.concurrency,
        ramp=args.ramp,
        requests=requests,
        duration=args.duration,
        mix=LengthMix(args.prompt_tokens, args.output_tokens),
        trace=trace,
        prefix_share=args.prefix_share,
        prefixes=args.prefixes,
        tenants=tenants,
        temperature=args.temperature,
        ignore_end=args.ignore_end,
        seed=args.seed,
    )


def _tenants(keys: Sequence[str]) -> list[Tenant]:
    from puna.loadtest import Tenant

    return [_tenant(text, number) for number, text in enumerate(keys, 1)] or [Tenant()]


def _tenant(text: str, number: int) -> Tenant:
    """From [NAME=]KEY[*WEIGHT]; the message of an error never has the key."""
    from puna.loadtest import Tenant

    name, equals, rest = text.partition("=")
    if not equals:
        name, rest = f"tenant-{number}", text
    key, star, weight = rest.partition("*")
    try:
        share = float(weight) if star else 1.0
    except ValueError:
        raise BadValue(f"the weight of --key number {number} must be a number, got {weight!r}") from None
    if key.startswith("@"):
        key = Path(key[1:]).read_text(encoding="utf-8", errors="replace").strip()
    if not name or not key or not key.isascii() or not key.isprintable() or " " in key:
        raise BadValue(f"--key number {number} must be a key of printable ASCII without spaces")
    return Tenant(name, key, share)


def _print(report: Mapping[str, Any]) -> None:
    load, goodput, targets = report["load"], report["goodput"], report["targets_ms"]
    sent = f"{report['requests']} requests in {report['wall_s']:.1f} s"
    print(f"{printable(report['model'])} on {report['server']}, {load['endpoint']}: {sent}, {_loop(load)}")
    print(f"lengths: {load['lengths']}")
    print()
    cached = report["cached_tokens"]
    print_facts(
        {
            "succeeded": f"{report['succeeded']} of {report['requests']}",
            "errors": ", ".join(f"{kind} {n}" for kind, n in report["errors"].items()) or None,
            "tokens": f"{report['prompt_tokens']:,} in, {report['output_tokens']:,} out"
            + ("" if cached is None else f", {cached:,} from the prefix cache"),
            "requests/s": f"{report['requests_per_s']:.2f}",
            "output tokens/s": f"{report['output_tokens_per_s']:.1f}",
            "total tokens/s": f"{report['total_tokens_per_s']:.1f}",
            "goodput": f"{goodput['share']:.1%}, {goodput['requests_per_s']:.2f} requests/s with "
            f"TTFT <= {targets['ttft']:g} ms and TPOT <= {targets['tpot']:g} ms",
            "generator": f"{report['generator']['cpu_share']:.1%} of a core",
        }
    )
    print()
    columns = ("mean", "p50", "p90", "p95", "p99", "max")
    values = {name.upper(): report[f"{name}_ms"] for name in ("ttft", "tpot", "itl", "e2e")}
    values["late"] = report["generator"]["lateness_ms"]
    print_table(["ms", *columns], [[name, *_cells(row, columns)] for name, row in values.items()])
    _print_tenants(report["tenants"])
    for note in report["notes"]:
        print(f"note: {printable(note)}")


def _cells(row: Mapping[str, float] | None, columns: Sequence[str]) -> list[str]:
    return [f"{row[column]:,.1f}" if row else "-" for column in columns]


def _loop(load: Mapping[str, Any]) -> str:
    if load["loop"] == "closed":
        ramp = f" that begin over {load['ramp_s']:g} s" if load["ramp_s"] else ""
        return f"closed loop of {load['concurrency']} clients{ramp}"
    if load["rate"] is None:
        return "open loop, arrivals of the trace"
    return f"open loop, {load['arrivals']} arrivals at {load['rate']:g}/s"


def _print_tenants(tenants: Mapping[str, Mapping[str, Any]]) -> None:
    if len(tenants) < 2:
        return
    print()
    rows = [
        [
            printable(name),
            f"{row['succeeded']}/{row['requests']}",
            f"{row['output_tokens_per_s']:.1f}",
            *_cells(row["ttft_ms"], ("p50", "p95")),
            *_cells(row["tpot_ms"], ("p50",)),
            f"{row['goodput']['share']:.1%}",
        ]
        for name, row in tenants.items()
    ]
    print_table(["tenant", "succeeded", "tokens/s", "TTFT p50", "p95", "TPOT p50", "goodput"], rows)
