"""Evaluate a model: perplexity over a text file, in sliding windows.

Every token is scored once, from at least window - stride tokens of context (the first window's: from what
there is); puna/evals/perplexity.py states the procedure, and the output repeats its numbers.

  puna eval perplexity smollm2 book.txt --window 1024 --stride 512
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from puna.cli.common import add_json, add_model, model_path, print_facts, print_json
from puna.cli.steps import step_bar
from puna.core import BadFile, BadValue
from puna.evals.perplexity import Perplexity, WindowConfig, count_windows, perplexity

HELP = "measure the perplexity of a model on a text"

_CACHE_TYPES = ("bf16", "f16", "f32", "q8_0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", metavar="perplexity", choices=("perplexity",), help="the measure")
    add_model(parser)
    add("file", metavar="FILE", help="a text in UTF-8, or - for standard input")
    size = WindowConfig.window
    add("--window", type=int, metavar="N", default=size, help=f"tokens seen at a time (default: {size})")
    add("--stride", type=int, metavar="N", help="tokens between windows (default: half a window)")
    add("--limit", type=int, metavar="N", help="only the first N tokens of the text")
    add("--threads", type=int, metavar="N", help="threads to run on (default: $PUNA_THREADS, or all cores)")
    add("--cache-type", choices=_CACHE_TYPES, default="bf16", help="keys and values (default: bf16)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from puna.llm import LLM

    config = WindowConfig(args.window, args.window // 2 if args.stride is None else args.stride)
    if args.limit is not None and args.limit < 1:
        raise BadValue(f"--limit must be 1 or more, got {args.limit}")
    text = _read(args.file)
    with LLM(
        model_path(args), threads=args.threads, cache_type=args.cache_type, batch=1, speculate=False
    ) as llm:
        if config.window > llm.context:
            raise BadValue(
                f"--window must be at most the context of the model, {llm.context}, got {config.window}"
            )
        tokenizer = llm.tokenizer
        ids = tokenizer.encode(text, bos=False)
        if args.limit is not None and args.limit < len(ids):
            ids = ids[: args.limit]
            text = tokenizer.decode(ids)
        bos = tokenizer.bos_id if tokenizer.add_bos else None
        with step_bar(count_windows(len(ids), config, bos)) as tick:
            result = perplexity(ids, len(text.encode()), llm.score, config, bos, tick)
    _print(result, args)
    return 0


def _read(name: str) -> str:
    """Raises BadFile for what is no text."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"{name}: expected text in UTF-8, found another byte at {error.start:,}") from None
    except OSError as error:
        raise BadFile(f"{name}: cannot be read: {error.strerror}") from None


def _print(result: Perplexity, args: argparse.Namespace) -> None:
    if args.json:
        print_json({"model": args.model, "file": args.file, **asdict(result)})
        return
    begins = ", each beginning with BOS" if result.bos else ""
    print_facts(
        {
            "perplexity": f"{result.perplexity:.4f} +- {result.standard_error:.4f}",
            "nats per token": f"{result.nats_per_token:.4f}",
            "bits per byte": f"{result.bits_per_byte:.4f}",
            "tokens": f"{result.n_scored:,} scored of {result.n_tokens:,}",
            "windows": f"{result.n_windows:,} of {result.window} tokens, {result.stride} apart{begins}",
        }
    )
