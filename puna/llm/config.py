"""What can be asked of an LLM when it is loaded and when it answers, with the defaults of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from puna.core import BadValue, SamplingParams, closest

CacheType = Literal["bf16", "f16", "f32", "q8_0"]
CACHE_TYPES: tuple[CacheType, ...] = get_args(CacheType)

# Meta's generation code and configuration files. For the single most likely answer ask for temperature 0.
DEFAULT_PARAMS = SamplingParams(temperature=0.6, top_p=0.9)


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

    def __post_init__(self) -> None:
        for name, most in (("context", 2**31 - 1), ("batch", 4096), ("threads", 1024)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 1 <= value <= most):
                raise BadValue(f"{name} must be a whole number from 1 to {most:,}, got {value!r}")
        if self.cache_type not in CACHE_TYPES:
            known = ", ".join(CACHE_TYPES)
            raise BadValue(
                f"cache_type must be one of {known}, got {self.cache_type!r}"
                f"{closest(str(self.cache_type), CACHE_TYPES)}"
            )
