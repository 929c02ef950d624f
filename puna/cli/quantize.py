"""Quantize a checkpoint to a GGUF file.

    puna quantize ./Llama-3.1-8B llama-3.1-8b.gguf --type q4_k_m
    puna quantize ./Llama-3.1-8B llama-3.1-8b.gguf --type iq4_xs --imatrix book.txt

SRC is whatever puna convert reads. --imatrix weighs errors by how strongly each column of a matrix is used:
by running SRC over a text, or from a file of llama.cpp's imatrix program. What is interrupted goes on where
it stopped when the same command is given again; the output appears under its name when it is complete and
has been read back.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli.common import ProgressBar, add_json, print_facts, print_json, size
from puna.cli.convert import add_verify, agreement_line
from puna.core import BadInput

if TYPE_CHECKING:
    from puna.weights.load import Checkpoint

HELP = "make a smaller GGUF file of a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from puna.weights.quantize.mixes import FILE_TYPES

    add = parser.add_argument
    add("source", metavar="SRC", help="file or folder of a checkpoint, or a name of the store")
    add("destination", metavar="DST", help="a new .gguf file")
    add("--type", metavar="TYPE", required=True, choices=tuple(FILE_TYPES), help=", ".join(FILE_TYPES))
    add("--imatrix", metavar="FILE", help="a text to weigh errors by, or importances in a .gguf file")
    add("--save-imatrix", metavar="FILE", help="write the importances that a text gave to a new .gguf file")
    add("--imatrix-tokens", metavar="N", type=int, help="of the text, at most (default: 65,536)")
    add("--allow-requantize", action="store_true", help="take a SRC whose matrices are quantized already")
    add("--threads", metavar="N", type=int, help="to run on (default: $PUNA_THREADS, or all cores)")
    add_verify(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna import env
    from puna.cli.convert import texts_of
    from puna.llm.config import LLMConfig
    from puna.llm.importance import importance_of
    from puna.llm.terms import keep
    from puna.llm.verify import compare
    from puna.runtime.cpu import default_threads
    from puna.weights import store
    from puna.weights.convert import convert
    from puna.weights.load import open_checkpoint
    from puna.weights.targets import Quantization, plan

    destination = Path(args.destination).expanduser()
    if destination.suffix.lower() != ".gguf":
        raise BadInput(f"the output is a GGUF file, whose name ends in .gguf, got {args.destination}")
    threads = LLMConfig(threads=args.threads).threads or env.threads() or default_threads()
    with open_checkpoint(store.resolve(args.source)) as checkpoint, ProgressBar() as bar:
        _check(checkpoint, args)
        importance = None
        if args.imatrix:
            importance = importance_of(args.imatrix, checkpoint, args.imatrix_tokens, args.save_imatrix, bar)
        quantization = Quantization(args.type, importance, threads)
        texts = texts_of(checkpoint, "gguf")
        target = plan(checkpoint, "gguf", texts, name=destination.stem, quantization=quantization)
        try:
            result = convert(target, destination, verify=args.verify != "none", progress=bar)
        except KeyboardInterrupt:
            print("\nthe same command goes on from here", file=sys.stderr)
            raise
        report: dict[str, Any] = {**asdict(result), "path": str(result.path), "type": args.type}
        report |= {"source_bytes": checkpoint.n_bytes, "notes": list(target.notes)}
        report["terms"] = keep(checkpoint.folder or checkpoint.paths[0], result.path)
        for note in report["terms"]:
            print(note, file=sys.stderr)
        if args.verify == "logits":
            report["logits"] = asdict(compare(checkpoint, destination))
    print_json(report) if args.json else _print(report)
    return 0


def _check(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    from puna.weights.targets import PLAIN

    found = {t.kind for t in checkpoint.tensors.values() if len(t.shape) > 1} - set(PLAIN)
    if found and not args.allow_requantize:
        raise BadInput(
            f"the matrices of {args.source} are quantized already ({', '.join(sorted(found))}), and errors "
            "add up; take the release in BF16, or add --allow-requantize"
        )
    if args.save_imatrix and not args.imatrix:
        raise BadInput("--save-imatrix writes what --imatrix TEXT finds; give a text too")
    if args.save_imatrix and os.path.lexists(args.save_imatrix):
        raise BadInput(f"{args.save_imatrix} exists already; remove it, or choose another name")


def _print(report: dict[str, Any]) -> None:
    print_facts(
        {
            "written": report["path"],
            "type": report["type"],
            "size": f"{size(report['n_bytes'])}, of {size(report['source_bytes'])}",
            "tensors": f"{report['n_tensors']:,}"
            + (f", {report['resumed']:,} by an earlier run" if report["resumed"] else ""),
            "verified": "read back" if report["verified"] else "no",
            "compared": agreement_line(report),
            "note": "; ".join(report["notes"]) or None,
        }
    )
