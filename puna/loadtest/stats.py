"""What one request met, and the numbers of many: no socket, no clock.

Latencies count from the moment when a request should have been sent, so that a server (or a generator) that
falls behind cannot hide it: what waits in a queue outside the server is a user who waits.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 95, 99)


@dataclass(slots=True)
class Outcome:
    """One request. All times are in seconds from the start of the load."""

    index: int
    tenant: str
    scheduled: float
    started: float = 0.0  # when the generator began to connect and send
    ended: float = 0.0
    deltas: array[float] = field(default_factory=lambda: array("d"))  # when each piece of text came
    prompt_tokens: int | None = None  # as the server counts; so the two below
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None  # its kind
    detail: str = ""

    @property
    def n_output(self) -> int:
        """Tokens of the answer; without usage one for each piece of text."""
        return len(self.deltas) if self.output_tokens is None else self.output_tokens

    @property
    def lateness(self) -> float:
        return self.started - self.scheduled

    @property
    def ttft(self) -> float | None:
        """Time to first token; None for an answer without any."""
        return self.deltas[0] - self.scheduled if self.deltas else None

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None for fewer than two tokens."""
        if self.n_output < 2 or not self.deltas:
            return None
        return (self.deltas[-1] - self.deltas[0]) / (self.n_output - 1)

    @property
    def e2e(self) -> float:
        return self.ended - self.scheduled


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds that a good answer takes at most.

    The defaults are those of MLPerf Inference 5.0, Llama 2 70B Interactive: 99th percentiles of a run there,
    asked of every request here.
    """

    ttft: float = 0.450
    tpot: float = 0.040

    def met_by(self, outcome: Outcome) -> bool:
        ttft, tpot = outcome.ttft, outcome.tpot
        return (
            outcome.error is None
            and ttft is not None
            and ttft <= self.ttft
            and (tpot is None or tpot <= self.tpot)
        )


def summary(outcomes: Sequence[Outcome], wall: float, targets: Targets) -> dict[str, Any]:
    """The figures of requests that ended within `wall` seconds; rates are per second of those.

    Keys: counts, errors by kind, tokens, rates, goodput, and `ttft_ms`, `tpot_ms`, `itl_ms`, `e2e_ms`, each
    with mean, p50, p90, p95, p99 and max over the requests that succeeded (None without any).
    """
    good = [outcome for outcome in outcomes if outcome.error is None]
    n_prompt = sum(outcome.prompt_tokens or 0 for outcome in good)
    n_output = sum(outcome.n_output for outcome in good)
    n_met = sum(map(targets.met_by, outcomes))
    cached = [outcome.cached_tokens for outcome in good if outcome.cached_tokens is not None]
    wall = max(wall, 1e-9)
    return {
        "requests": len(outcomes),
        "succeeded": len(good),
        "empty": sum(not outcome.deltas for outcome in good),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error).most_common()),
        "prompt_tokens": n_prompt,
        "cached_tokens": sum(cached) if cached else None,
        "output_tokens": n_output,
        "requests_per_s": len(good) / wall,
        "output_tokens_per_s": n_output / wall,
        "total_tokens_per_s": (n_prompt + n_output) / wall,
        "goodput": {"share": n_met / len(outcomes) if outcomes else 0.0, "requests_per_s": n_met / wall},
        "ttft_ms": spread([o.ttft for o in good if o.ttft is not None]),
        "tpot_ms": spread([o.tpot for o in good if o.tpot is not None]),
        "itl_ms": spread(gaps(good)),
        "e2e_ms": spread([o.e2e for o in good]),
    }


def gaps(outcomes: Sequence[Outcome]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """All times between one piece of text and the next, in seconds, [n]."""
    parts = [np.diff(np.frombuffer(o.deltas, np.float64)) for o in outcomes if len(o.deltas) > 1]
    return np.concatenate(parts) if parts else np.empty(0)


def spread(seconds: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float] | None:
    """Mean, percentiles (linear between samples) and maximum in milliseconds; None of nothing."""
    if not len(seconds):
        return None
    values = np.asarray(seconds, np.float64) * 1e3
    found = np.percentile(values, PERCENTILES)
    named = {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}
    return {"mean": float(values.mean()), **named, "max": float(values.max())}


def over_time(outcomes: Sequence[Outcome], wall: float, most_bins: int = 120) -> dict[str, Any]:
    """Requests running and tokens per second, in `most_bins` or fewer equal bins of a second or more.

    `running` is the mean number over the bin; a token counts where its piece of text came.
    """
    n_bins = int(np.clip(wall, 1, most_bins))
    width = max(wall, 1e-9) / n_bins
    edges = np.arange(n_bins + 1) * width
    running, tokens = np.zeros(n_bins), np.zeros(n_bins)
    for outcome in outcomes:
        inside = np.clip(outcome.ended, edges[:-1], edges[1:]) - np.clip(
            outcome.started, edges[:-1], edges[1:]
        )
        running += np.maximum(inside, 0)
        if outcome.deltas:
            at = np.minimum((np.frombuffer(outcome.deltas) / width).astype(int), n_bins - 1)
            tokens += np.bincount(np.maximum(at, 0), minlength=n_bins) * (
                outcome.n_output / len(outcome.deltas)
            )
    return {
        "bin_s": width,
        "running": (running / width).round(3).tolist(),
        "output_tokens_per_s": (tokens / width).round(3).tolist(),
    }
