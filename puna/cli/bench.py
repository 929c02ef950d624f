"""Measure this machine's limits and a model's share of them, beside other engines if asked.

Each round measures the limits (reading memory, multiplying int8 and bf16), our engine and every peer right
after one another, because machines drift; values are medians of all rounds. docs/bench.md defines every key
of the JSON object and both kinds of share.

  puna bench smollm2 --vs llama.cpp --vs-quant q4_0
  puna bench --synthetic llama-3.2-1b --quant q4_k_m --quick
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna import env
from puna.cli.common import add_json, add_model, model_path, print_json, print_table, size
from puna.cli.steps import step_bar
from puna.core import BadInput, BadValue

if TYPE_CHECKING:
    from puna.bench.jobs import BenchConfig
    from puna.bench.report import Outcome
    from puna.bench.session import Setting
    from puna.llm.backend import Backend

HELP = "measure a model's share of this machine's limits"

_WEIGHTS = ("bf16", "f16", "f32", "fp8", "int4")
_CACHE_TYPES = ("bf16", "f16", "f32", "q8_0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "smollm2")
    add_json(parser)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer sizes and rounds")
    add("--rounds", type=int, metavar="N", help="rounds that count (default: 5, with --quick 3)")
    add("--threads", type=int, metavar="N", help="threads of all engines and limits (default: usable cores)")
    add("--cache-type", choices=_CACHE_TYPES, default="bf16", help="keys and values (default: bf16)")
    add("--streams", type=int, metavar="N", help="also serve N requests at once, 128 tokens in and out")
    add("--vs", choices=("llama.cpp", "vllm", "transformers"), help="run another engine beside ours")
    add("--vs-quant", metavar="FORMAT", help="also let llama.cpp run the model requantized, for example q4_0")
    add("--backend", choices=("native", "torch"), default="native", help="what computes (default: native)")
    add("--device", metavar="NAME", default="auto", help="of torch: cpu, cuda, … (default: what there is)")
    add("--weights", choices=_WEIGHTS, help="of torch (default: bf16 on an accelerator, f32 on a CPU)")
    add("--peer-python", metavar="PATH", help="interpreter that has the other engine (default: this one)")
    add("--synthetic", metavar="NAME", help="random weights in the shape of a model of the catalog")
    add("--layers", type=int, metavar="N", help="only the first N layers of the random weights")
    add("--quant", metavar="FORMAT", help="format of the random weights (default: q4_0)")
    add("--ops", action="store_true", help="measure the kernels instead, one thread, every CPU target")


def run(args: argparse.Namespace) -> int:
    _check(args)
    if args.ops:
        return _run_ops(args)
    from puna.bench.session import n_ticks, run_bench, synthetic_file

    config, setting = _config(args), _setting(args)
    with ExitStack() as stack:
        tick = stack.enter_context(step_bar(n_ticks(config, setting) + bool(args.synthetic)))
        name = None
        if args.synthetic:
            quant = args.quant or "q4_0"
            layers = f", {args.layers} layers" if args.layers else ""
            name = f"{args.synthetic}{layers}, random weights in {quant}"
            tick(f"making {name}")
            path = stack.enter_context(synthetic_file(args.synthetic, quant, args.layers))
        else:
            path = model_path(args)
        outcome = run_bench(path, config, setting, tick, name)
    if args.json:
        from puna.bench.report import to_json

        print_json(to_json(outcome))
    else:
        _print(outcome)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise BadInput for options that make no sense together."""
    if args.quant and not args.synthetic:
        raise BadInput("--quant is the format of --synthetic weights; a model file has its own")
    if args.layers is not None and not args.synthetic:
        raise BadInput("--layers cuts the shape of --synthetic weights; a model file runs whole")
    if args.vs_quant and args.vs != "llama.cpp":
        raise BadInput("--vs-quant needs --vs llama.cpp, whose quantizer makes the file")
    if args.peer_python and not args.vs:
        raise BadInput("--peer-python needs --vs with the engine that it runs")
    if args.threads is not None and not 1 <= args.threads <= env.most_threads():
        raise BadValue(
            f"--threads must be from 1 to {env.most_threads()} on this machine, got {args.threads}"
        )


def _config(args: argparse.Namespace) -> BenchConfig:
    from puna.bench.jobs import QUICK, BenchConfig

    config = QUICK if args.quick else BenchConfig()
    given = {name: getattr(args, name) for name in ("rounds", "streams")}
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def _setting(args: argparse.Namespace) -> Setting:
    from puna.bench.session import Setting
    from puna.runtime.cpu import default_threads

    return Setting(
        threads=args.threads or env.threads() or default_threads(),
        target=env.cpu_target() or "",
        cache_type=args.cache_type,
        backend=_backend(args),
        vs=args.vs,
        vs_quant=args.vs_quant,
        # not resolved: the link of a virtual environment is what makes its packages found
        peer_python=str(Path(args.peer_python).absolute()) if args.peer_python else sys.executable,
    )


def _backend(args: argparse.Namespace) -> Backend:
    """With the type of weights said out. Raises BadValue where torch or the device is missing."""
    from puna.llm.backend import choose
    from puna.llm.config import LLMConfig

    chosen = choose(LLMConfig(backend=args.backend, device=args.device, weights=args.weights or ""))
    if not chosen.is_torch or chosen.weights:
        return chosen
    from puna.runtime.torch import default_dtype

    return replace(chosen, weights=default_dtype(chosen.device))


def _print(outcome: Outcome) -> None:
    from puna.bench.report import table, to_json

    report = to_json(outcome)
    model, machine = report["model"], report["machine"]
    print(
        f"{model['name']}: {model['parameters'] / 1e6:,.0f} million parameters, mostly {model['format']}, "
        f"{size(model['file_bytes'])}"
    )
    print(
        f"{machine['threads']} threads, {_where(machine)}; limits: "
        + ", ".join(_limit(machine, *limit) for limit in _LIMITS)
    )
    start = report["start"]
    print(
        f"cold start: loaded in {start['load_s']:.2f} s, first token after {start['first_token_s']:.2f} s, "
        f"peak memory {size(start['peak_bytes'])}, {start['peak_bytes'] / model['file_bytes']:.2f} x the file"
    )
    print()
    print_table(*table(outcome))
    for row in report["batch"]:
        if row["batch"] > 1 and "speedup" in row:
            print(f"batch of {row['batch']}: {row['speedup']:.2f} x the tokens of one stream")
    for sentence in outcome.skipped:
        print(f"left out: {sentence}")


_LIMITS = (
    ("read_gb_s", "read {} GB/s"),
    ("int8_tops", "int8 {} TOPS"),
    ("bf16_tflops", "bf16 {} TFLOPS"),
)


def _where(machine: dict[str, Any]) -> str:
    if machine["backend"] == "native":
        return str(machine["target"])
    return f"torch on {machine['device']}, weights in {machine['weights']}"


def _limit(machine: dict[str, Any], key: str, text: str) -> str:
    spread = f"{machine[f'{key}_min']:.3g}-{machine[f'{key}_max']:.3g}"
    return text.format(f"{machine[key]:.3g} ({spread})")


def _run_ops(args: argparse.Namespace) -> int:
    from puna.bench.ops import cases, measure_ops
    from puna.runtime.cpu import cpu_info

    forced = env.cpu_target()
    targets = [forced] if forced else list(cpu_info()["available"])
    with step_bar(len(targets) * len(cases())) as tick:
        results = measure_ops(targets, tick)
    if args.json:
        print_json({"ops": [asdict(result) for result in results]})
        return 0
    rows = [
        [
            r.target,
            r.kind,
            str(r.n_tokens),
            f"{r.gop_s:,.1f}",
            f"{r.share_of_peak:.0%}",
            f"{r.weight_gb_s:.1f}",
        ]
        for r in results
    ]
    print_table(["target", "weight", "tokens", "1e9 op/s", "of the peak", "weight GB/s"], rows)
    return 0
