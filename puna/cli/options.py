"""Options that the commands which load a model and sample from it share; every default is the API's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from puna.cli.common import ProgressBar
from puna.core import SamplingParams
from puna.llm import DEFAULT_PARAMS, LLM, LLMConfig
from puna.llm.config import BACKENDS, CACHE_TYPES, PREFERENCES, WEIGHTS

_PATIENCE = 1.0  # seconds of loading before a progress bar is worth its own time


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """--temperature and all others; `read_sampling` makes the parameters of them."""
    group = parser.add_argument_group("sampling")
    for name, kind, text in (
        ("temperature", float, "0 takes the likeliest token each time"),
        ("top_k", int, "of the k likeliest tokens only; 0: of all"),
        ("top_p", float, "of the likeliest tokens that add up to this"),
        ("min_p", float, "of tokens at least this times as likely as the likeliest"),
        ("typical_p", float, "of the most typical tokens that add up to this"),
        ("repetition_penalty", float, "divides the logits of tokens seen so far; 1: off"),
        ("frequency_penalty", float, "subtracted from a logit per occurrence in the answer"),
        ("presence_penalty", float, "subtracted from a logit once it occurred in the answer"),
        ("max_tokens", int, "tokens of the answer (default: until the context is full)"),
        ("min_tokens", int, "no end before this many tokens"),
        ("seed", int, "equal seeds give equal answers (default: a random one)"),
    ):
        default = getattr(DEFAULT_PARAMS, name)
        shown = text if default is None else f"{text} (default: {default:g})"
        group.add_argument(f"--{name.replace('_', '-')}", metavar="N", type=kind, default=default, help=shown)
    group.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before TEXT; may be repeated"
    )
    group.add_argument("--ignore-end", action="store_true", help="go on after the model's end token")


def read_sampling(args: argparse.Namespace, **more: Any) -> SamplingParams:
    """The parameters that `add_sampling` has read. Raises BadValue."""
    names = (
        "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "frequency_penalty",
        "presence_penalty", "max_tokens", "min_tokens", "seed", "ignore_end",
    )  # fmt: skip
    return SamplingParams(**{name: getattr(args, name) for name in names}, stop=tuple(args.stop), **more)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """--context, --threads, --cache-type, --backend, --device, --weights, --mmproj, …, for `load`."""
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--context",
        metavar="N",
        type=int,
        default=LLMConfig.context,
        help="tokens of prompt and answer together (default: the model's, or what fits into memory)",
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=int,
        default=LLMConfig.threads,
        help="threads to run on (default: $PUNA_THREADS, or all cores)",
    )
    group.add_argument(
        "--cache-type",
        metavar="TYPE",
        default=LLMConfig.cache_type,
        help=f"of keys and values: {', '.join(CACHE_TYPES)} (default: {LLMConfig.cache_type})",
    )
    group.add_argument(
        "--backend",
        metavar="NAME",
        default=LLMConfig.backend,
        help=f"what computes: {', '.join(BACKENDS)} (default: {LLMConfig.backend}, which is native on a CPU)",
    )
    group.add_argument(
        "--device",
        metavar="NAME",
        default=LLMConfig.device,
        help="cpu, cuda, cuda:1 or another of torch's (default: an accelerator if torch sees one, else cpu)",
    )
    group.add_argument(
        "--mmproj", metavar="FILE", help="vision file of a GGUF model (default: the *mmproj*.gguf beside it)"
    )
    group.add_argument(
        "--chat-format",
        metavar="NAME",
        help="build prompts for this generation, llama3.1 say (default: by the model's template)",
    )
    _add_arithmetic(group)
    _add_guessing(group)


def _add_arithmetic(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--weights",
        metavar="TYPE",
        default=LLMConfig.weights,
        help=f"of torch's matrices: {', '.join(filter(None, WEIGHTS))} "
        "(default: bf16 on an accelerator, f32 on a CPU)",
    )
    group.add_argument(
        "--tensor-parallel",
        metavar="N",
        type=int,
        default=LLMConfig.tensor_parallel,
        help="processes of torch that share the model, one device each and without CUDA graphs (default: 1)",
    )
    group.add_argument(
        "--prefer",
        metavar="WHAT",
        default=LLMConfig.prefer,
        help=f"{' or '.join(PREFERENCES)}: one answer soonest, or many at once and long prompts, by other "
        f"kernels on CPUs with AMX (default: {LLMConfig.prefer})",
    )


def _add_guessing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--draft", metavar="MODEL", help="smaller model that guesses tokens ahead; answers are the same"
    )
    group.add_argument(
        "--no-speculation", action="store_true", help="do not guess tokens ahead; answers are the same"
    )


def load(path: Path, args: argparse.Namespace, seed: int | None = None, *, batch: int | None = 1) -> LLM:
    """Load a model for `batch` conversations at a time (None: as memory allows), with a progress bar where
    that takes a while.

    `seed` is that of the first request that has none of its own.
    """
    with LateProgress() as progress:
        return LLM(path, **loading_options(args), batch=batch, seed=seed, progress=progress)


def loading_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of LLM that `add_loading` has read."""
    names = (
        "context", "cache_type", "threads", "backend", "device", "mmproj", "chat_format", "weights",
        "tensor_parallel", "draft", "prefer",
    )  # fmt: skip
    return {**{name: getattr(args, name) for name in names}, "speculate": not args.no_speculation}


class LateProgress:
    """A progress bar on a terminal, once the work has taken a while."""

    def __init__(self) -> None:
        self._began_at = perf_counter()
        self._bar: ProgressBar | None = None

    def __enter__(self) -> LateProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if self._bar is None and sys.stderr.isatty() and perf_counter() - self._began_at > _PATIENCE:
            self._bar = ProgressBar().__enter__()
        if self._bar is not None:
            self._bar(what, done, total)
