"""Perplexity over sliding windows: how well a model predicts a text, exp of the mean surprise per token.

The text is cut into windows of `window` tokens, each `stride` tokens after the one before. Every token is
scored exactly once, in the first window that reaches it: the first window scores all it can, each later one
its last `stride` tokens (the last window: what is left), so those are predicted from at least
`window - stride` tokens of context. Where the tokenizer begins texts with BOS, every window begins with it,
and it takes one of the window's places; the very first token is then scored too. This is the procedure of
transformers' documentation ("Perplexity of fixed-length models").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import pvariance

from puna.core import BadValue, TokenLogprob

Score = Callable[[list[int]], Sequence[TokenLogprob]]  # LLM.score: of every token after the first


@dataclass(frozen=True)  # no slots: the class attributes are the defaults of the command
class WindowConfig:
    window: int = 512  # tokens that the model sees at a time, BOS included
    stride: int = 256  # tokens between the beginnings of windows

    def __post_init__(self) -> None:
        if self.window < 2:
            raise BadValue(f"window must be 2 or more tokens, got {self.window}")
        if not 1 <= self.stride < self.window:
            raise BadValue(f"stride must be from 1 to {self.window - 1} for this window, got {self.stride}")


@dataclass(frozen=True, slots=True)
class Window:
    ids: list[int]  # BOS, if there is one, and tokens of the text
    n_scored: int  # of its last tokens


@dataclass(frozen=True, slots=True)
class Perplexity:
    perplexity: float
    standard_error: float  # of the perplexity, from the spread of the tokens' surprises
    nats_per_token: float
    bits_per_byte: float  # of the text's UTF-8; comparable between tokenizers
    n_tokens: int  # of the text
    n_scored: int
    n_windows: int
    window: int
    stride: int
    bos: bool  # whether every window begins with BOS


def windows(ids: Sequence[int], config: WindowConfig, bos: int | None) -> Iterator[Window]:
    """Cut a text into windows; nothing for a text without a token that could be scored."""
    head = [] if bos is None else [bos]
    size = config.window - len(head)
    n_done = 0 if head else 1  # without BOS nothing predicts the first token
    for start in range(0, len(ids), config.stride):
        end = min(start + size, len(ids))
        if end <= n_done:
            return
        yield Window([*head, *ids[start:end]], end - n_done)
        n_done = end


def count_windows(n_tokens: int, config: WindowConfig, bos: int | None) -> int:
    return sum(1 for _ in windows(range(n_tokens), config, bos))


def perplexity(
    ids: Sequence[int],
    n_bytes: int,
    score: Score,
    config: WindowConfig,
    bos: int | None,
    tick: Callable[[str], None],
) -> Perplexity:
    """Score a text given as token ids without BOS; `n_bytes` is its length in UTF-8.

    `tick` is told of every window before it runs. Raises BadValue for a text with nothing to score.
    """
    surprises: list[float] = []
    n_windows = 0
    for window in windows(ids, config, bos):
        n_windows += 1
        tick(f"{len(surprises):,} tokens scored")
        scores = score(window.ids)
        surprises += [-item.logprob for item in scores[len(scores) - window.n_scored :]]
    if not surprises:
        raise BadValue(f"the text must have at least {2 if bos is None else 1} tokens, got {len(ids)}")
    mean = sum(surprises) / len(surprises)
    return Perplexity(
        perplexity=exp(mean),
        standard_error=exp(mean) * sqrt(pvariance(surprises, mean) / len(surprises)),
        nats_per_token=mean,
        bits_per_byte=sum(surprises) / log(2) / n_bytes,
        n_tokens=len(ids),
        n_scored=len(surprises),
        n_windows=n_windows,
        window=config.window,
        stride=config.stride,
        bos=bos is not None,
    )
