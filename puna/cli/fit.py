"""Does a model fit into this machine? What it takes in memory, and what would fit instead; nothing is loaded.

  puna fit llama-3.1-8b-instruct --quant q4_k_m --context 8192

Exits with 0 if it fits and with 1 if it does not.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from puna.cli.common import add_json, print_facts, print_json, print_table, size

if TYPE_CHECKING:
    from puna.llm.fitting import Estimate, Fit

HELP = "say what a model takes in memory, and what would fit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from puna.llm.config import BACKENDS, CACHE_TYPES, LLMConfig
    from puna.weights.quantize.mixes import FILE_TYPES

    add = parser.add_argument
    add("model", metavar="MODEL", help="name, .gguf file, folder or source; it need not be on this machine")
    add("--context", metavar="N", type=int, help="tokens of prompt and answer (default: all it was made for)")
    add("--batch", metavar="N", type=int, help="sequences at once (default: 1)")
    add(
        "--quant",
        metavar="FORMAT",
        choices=tuple(FILE_TYPES),
        help=f"of the weights: {', '.join(FILE_TYPES)}",
    )
    add(
        "--cache-type",
        metavar="TYPE",
        default=LLMConfig.cache_type,
        help=f"of keys and values: {', '.join(CACHE_TYPES)} (default: {LLMConfig.cache_type})",
    )
    add("--backend", metavar="NAME", default=LLMConfig.backend, help=", ".join(BACKENDS))
    add("--device", metavar="NAME", default=LLMConfig.device, help="cpu, cuda, cuda:1 or another of torch's")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.llm.config import LLMConfig
    from puna.llm.fitting import estimate

    asked = LLMConfig(
        context=args.context,
        cache_type=args.cache_type,
        batch=args.batch,
        backend=args.backend,
        device=args.device,
    )
    found = estimate(args.model, asked, args.quant)
    if args.json:
        print_json(_report(found))
    else:
        _print(found)
    return 0 if found.asked.fits else 1


def _report(found: Fit) -> dict[str, Any]:
    def row(estimate: Estimate) -> dict[str, Any]:
        return {**asdict(estimate), "total": estimate.total, "fits": estimate.fits}

    return {
        "model": found.name,
        "backend": found.backend.name,
        "device": found.backend.device,
        **row(found.asked),
        "instead": [row(other) for other in found.instead],
    }


def _print(found: Fit) -> None:
    asked = found.asked
    times = f" for each of {asked.batch} sequences" if asked.batch > 1 else ""
    print_facts(
        {
            "model": found.name + (f" in {asked.quant}" if asked.quant else ""),
            "runs on": f"{found.backend.device}, {found.backend.name} backend",
            "weights": size(asked.weights),
            "keys, values": f"{size(asked.cache)}, {asked.context:,} tokens{times}",
            "still seen": f"{size(asked.seen_cache)} of them, by chunked attention"
            if asked.seen_cache < 0.9 * asked.cache
            else None,
            "activations": size(asked.activations),
            "process": size(asked.process),
            "together": size(asked.total),
            "available": "the system does not tell" if asked.available is None else size(asked.available),
        }
    )
    print()
    if asked.fits:
        print("It fits.")
        return
    print("It does not fit." + (" What does:" if found.instead else " Nor does any smaller form of it."))
    if found.instead:
        rows = [(size(e.total), f"{e.context:,}", _flags(e)) for e in found.instead]
        print_table(("MEMORY", "CONTEXT", "ADD"), rows)


def _flags(estimate: Estimate) -> str:
    quant = f"--quant {estimate.quant} " if estimate.quant else ""
    return f"{quant}--context {estimate.context}" + (
        f" --batch {estimate.batch}" if estimate.batch > 1 else ""
    )
