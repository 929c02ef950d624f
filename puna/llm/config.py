"""What can be asked of an LLM when it is loaded and when it answers, with the defaults of both."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from puna import env
from puna.core import BadValue, SamplingParams, closest

CacheType = Literal["bf16", "f16", "f32", "q8_0"]
CACHE_TYPES: tuple[CacheType, ...] = get_args(CacheType)
BackendName = Literal["auto", "native", "torch"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
WeightsName = Literal["", "bf16", "f16", "f32", "fp8", "int4"]
WEIGHTS: tuple[WeightsName, ...] = get_args(WeightsName)
Preference = Literal["latency", "throughput"]
PREFERENCES: tuple[Preference, ...] = get_args(Preference)
_MOST_RANKS = 64

# Meta's generation code and configuration files. For the single most likely answer ask for temperature 0.
DEFAULT_PARAMS = SamplingParams(temperature=0.6, top_p=0.9)


_NONE = type(None)
_OPTION_TYPES: tuple[tuple[tuple[str, ...], tuple[type, ...], str], ...] = (
    (
        (
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "temperature",
            "top_p",
            "min_p",
            "typical_p",
        ),
        (int, float),
        "a number",
    ),
    (("top_k", "min_tokens"), (int,), "a whole number"),
    (("seed", "max_tokens", "logprobs", "penalty_window"), (int, _NONE), "a whole number or None"),
    (("ignore_end",), (bool,), "True or False"),
    (("stop", "stop_ids", "logprob_ids"), (tuple,), "a tuple"),
    (("logit_bias",), (Mapping,), "a mapping from token ids to numbers"),
)


def sampling_params(options: Mapping[str, Any], base: SamplingParams = DEFAULT_PARAMS) -> SamplingParams:
    """`base` with `options` in the place of its fields; one stop or stop id needs no list around it.

    Raises UnknownOption with the closest name, and BadValue for a value of the wrong type or range.
    """
    chosen = {field.name: getattr(base, field.name) for field in fields(base)} | dict(options)
    for name in ("stop", "stop_ids"):
        value = chosen[name]
        if isinstance(value, str | int):
            chosen[name] = (value,)
        elif isinstance(value, Iterable) and not isinstance(value, bytes):
            chosen[name] = tuple(value)
    _check_types(chosen)
    return SamplingParams.from_options(chosen)


def _check_types(chosen: Mapping[str, Any]) -> None:
    """Unknown names pass: from_options names the closest one."""
    for names, kinds, expected in _OPTION_TYPES:
        for name in names:
            value = chosen[name]
            if not isinstance(value, kinds) or isinstance(value, bool) != (bool in kinds):
                raise BadValue(f"{name} must be {expected}, got {value!r}")
    for name in ("stop_ids", "logit_bias"):
        if not all(map(_is_whole, chosen[name])):
            raise BadValue(f"{name} must be of token ids, whole numbers, got {chosen[name]!r}")
    if any(not isinstance(v, int | float) or isinstance(v, bool) for v in chosen["logit_bias"].values()):
        raise BadValue(f"logit_bias must add numbers, got {chosen['logit_bias']!r}")
    if any(not isinstance(text, str) for text in chosen["stop"]):
        raise BadValue(f"stop must be of texts, got {chosen['stop']!r}")


@dataclass(frozen=True)  # no slots: the class attributes are the defaults of LLM.__init__ and of the commands
class LLMConfig:
    """How a model is loaded. Memory for keys and values is reserved for `context * batch` tokens at most, and
    taken as it fills."""

    context: int | None = None  # tokens of prompt and answer; None: the model's own, or what memory allows
    cache_type: CacheType = "bf16"  # of keys and values; q8_0 takes half the memory and rounds them
    threads: int | None = None  # None: PUNA_THREADS, or else the usable cores
    batch: int | None = None  # contexts that the cache has room for; None: up to 8, as memory allows
    seed: int | None = None  # request n without a seed of its own gets seed + n; None: a random one
    speculate: bool = True  # guess tokens from the text so far where that saves time; never changes answers
    backend: BackendName = "auto"  # native: the compiled CPU executor; torch: any device of torch
    device: str = "auto"  # cpu, cuda, cuda:1, …; auto: an accelerator if torch sees one, else the CPU
    mmproj: str | os.PathLike[str] | None = None  # vision file of a GGUF model; None: the one beside it
    chat_format: str | None = (
        None  # how prompts are built (text/formats); None: by the file's template, if any
    )
    weights: WeightsName = ""  # torch: what matrices are kept in; "": bf16 on an accelerator, f32 on a CPU
    tensor_parallel: int = 1  # torch: processes that share the model, each on a device of its own
    draft: str | os.PathLike[str] | None = None  # a smaller model that guesses tokens; never changes answers
    memory: int | None = None  # bytes that weights, cache and work may take; None: what is free
    prefer: Preference = "latency"  # of one answer; or throughput, of many at once and of long prompts

    def __post_init__(self) -> None:
        if self.seed is not None and not _is_whole(self.seed):
            raise BadValue(f"seed must be a whole number, got {self.seed!r}")
        if not isinstance(self.speculate, bool):
            raise BadValue(f"speculate must be True or False, got {self.speculate!r}")
        if self.draft is not None and not self.speculate:
            raise BadValue(
                "a draft model is there to guess tokens, and speculate is off; leave one of them out"
            )
        for name, most in (
            ("context", 2**31 - 1),
            ("batch", 4096),
            ("threads", env.most_threads()),
            ("memory", 2**63 - 1),
        ):
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and 1 <= value <= most):
                raise BadValue(f"{name} must be a whole number from 1 to {most:,}, got {value!r}")
        if self.chat_format is not None:
            from puna.text.formats import find  # most models build no prompt by it

            find(self.chat_format)
        if not (_is_whole(self.tensor_parallel) and 1 <= self.tensor_parallel <= _MOST_RANKS):
            raise BadValue(
                f"tensor_parallel must be a whole number from 1 to {_MOST_RANKS}, "
                f"got {self.tensor_parallel!r}"
            )
        choices = (
            ("cache_type", CACHE_TYPES),
            ("backend", BACKENDS),
            ("weights", WEIGHTS),
            ("prefer", PREFERENCES),
        )
        for name, known in choices:
            value = getattr(self, name)
            if value not in known:
                hint = closest(str(value), known)
                listed = ", ".join(filter(None, known))
                raise BadValue(f"{name} must be one of {listed}, got {value!r}{hint}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
