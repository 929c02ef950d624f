"""How well classifiers tell unsafe texts from safe ones, on a labelled set of your own.

  puna safety eval --data cases.jsonl --classifier llama-guard-3-8b
  puna safety eval --data cases.csv --classifier ./guard.gguf --classifier patterns:rules.toml

FILE has a case on each line, JSON lines or CSV: `text` (and `answer`, which is then judged) or
`conversation`, `unsafe` true or false, and perhaps `category` and `group`.

A classifier is a guard model, asked by its own chat template (or by --prompt, the prompt of a version of
Llama Guard), or what `puna.safety.classifiers` makes of a line such as patterns:FILE. Several are compared
with the first one on the same resamples. Intervals are 95 %, of a stratified bootstrap.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, not_text, print_json, print_table, printable
from puna.core import BadInput

if TYPE_CHECKING:
    from puna.safety.evaluate import Answers, Case

HELP = "measure classifiers on a labelled set"

_NAMES = {"precision": "precision", "recall": "recall", "f1": "F1", "fpr": "false pos.", "auprc": "AUPRC"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="FILE", type=Path, required=True, help="labelled cases, .jsonl or .csv")
    add(
        "--classifier",
        metavar="NAME",
        action="append",
        required=True,
        help="a guard model, or a line such as patterns:FILE; may be repeated",
    )
    add("--prompt", metavar="VERSION", help="ask guard models by this version's prompt: llama-guard-3-8b, …")
    add("--threshold", type=float, metavar="P", help="flag from this score on (default: as they say)")
    add("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    add("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: 0)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.safety.evaluate import read_cases, report
    from puna.safety.evaluate.report import check

    if len(set(args.classifier)) < len(args.classifier):
        raise BadInput("name each --classifier once")
    if args.seed < 0:
        raise BadInput(f"--seed must be 0 or more, got {args.seed}")
    check(args.resamples, args.threshold)
    data = read_cases(_text(args.data), str(args.data))
    if data.ignored:
        print(f"puna: not looked at: {', '.join(map(printable, data.ignored))}", file=sys.stderr)
    answers = [_answers(name, args.prompt, data.cases) for name in args.classifier]
    made = report(data.cases, answers, n_resamples=args.resamples, seed=args.seed, threshold=args.threshold)
    if args.json:
        print_json({"data": str(args.data), **made})
    else:
        _print(made)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} {not_text(error)}") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; name a file of cases") from None


def _answers(name: str, prompt: str | None, cases: tuple[Case, ...]) -> Answers:
    import asyncio

    from puna.cli.safety_parts.judges import judge
    from puna.safety.evaluate import Answers

    with judge(name, prompt) as classifier:
        print(f"puna: {printable(name)} judges {len(cases):,} cases", file=sys.stderr)
        return Answers(name, asyncio.run(_judged(classifier, cases)))


async def _judged(classifier: Any, cases: tuple[Case, ...]) -> Any:
    return await classifier.judge([case.turns for case in cases])


def _print(made: dict[str, Any]) -> None:
    print(f"{made['cases']:,} cases, {made['unsafe']:,} of them unsafe; 95 % intervals")
    for one in made["classifiers"]:
        print(f"\n{printable(one['name'])}")
        print_table(("", "VALUE", "INTERVAL"), [(label, *_cells(one[key])) for key, label in _NAMES.items()])
        table, best = one["confusion"], one["best_threshold"]
        print(
            f"of the unsafe {table['tp']:,} flagged and {table['fn']:,} missed, of the safe {table['fp']:,} "
            f"flagged and {table['tn']:,} let pass"
        )
        print(
            f"best threshold on this set, chosen on it and so too good: {best['threshold']:.4g}, "
            f"F1 {best['f1']:.3f}"
        )
        if one["groups"]:
            header = ("GROUP", "CASES", "UNSAFE", *(label.upper() for label in _NAMES.values()))
            print_table(header, [_group(name, group) for name, group in one["groups"].items()])
        if one["categories"]:
            rows = [(printable(k), str(v["unsafe"]), str(v["flagged"])) for k, v in one["categories"].items()]
            print_table(("CATEGORY", "UNSAFE", "FLAGGED"), rows)
    for one in made["differences"]:
        print(f"\n{printable(one['name'])} less {printable(one['to'])}, paired")
        print_table(
            ("", "VALUE", "INTERVAL"), [(label, *_cells(one[key], "+")) for key, label in _NAMES.items()]
        )


def _cells(figure: dict[str, float] | None, sign: str = "") -> tuple[str, str]:
    if figure is None:
        return "-", "not defined here"
    value, low, high = (format(figure[key], f"{sign}.3f") for key in ("value", "low", "high"))
    return value, f"{low} to {high}"


def _group(name: str, group: dict[str, Any]) -> tuple[str, ...]:
    cells = [_cells(group[key]) for key in _NAMES]
    shown = [value if value == "-" else f"{value} ({interval})" for value, interval in cells]
    return (printable(name), str(group["cases"]), str(group["unsafe"]), *shown)
