"""The result of a load test: as one JSON object, and as sentences about what to doubt in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from puna.loadtest.load import MOST_REQUESTS, Load
from puna.loadtest.run import Run
from puna.loadtest.stats import Outcome, Targets, over_time, spread, summary

DEFINITIONS = {
    "ttft_ms": "from when the request was due to its first piece of text that is not empty",
    "tpot_ms": "mean time per output token after the first, of one request",
    "itl_ms": "time between one piece of text and the next, of all requests; what one read of the socket "
    "brings comes at once",
    "e2e_ms": "from when the request was due to the end of its answer",
    "rates": "of requests that succeeded, per second from the start to the last end",
    "goodput": "requests that succeeded with ttft and tpot at or under the targets; the default targets are "
    "those of MLPerf Inference 5.0, Llama 2 70B Interactive",
    "tokens": "as the server's usage counts them; without usage one for each piece of text",
    "lateness_ms": "from when a request was due to when the generator began to send it; in all latencies",
}
_LATE_MS = (
    10.0  # beyond it, and beyond a tenth of the time to first token, the generator disturbs the figures
)


@dataclass(frozen=True, slots=True)
class Report:
    """`began` is the Unix time of the start, `cpu_s` the processor time that the generator took."""

    server: str
    load: Load
    targets: Targets
    run: Run
    began: float
    cpu_s: float

    @property
    def outcomes(self) -> list[Outcome]:
        """In the order in which they were due."""
        return sorted(self.run.outcomes, key=lambda outcome: outcome.index)

    def to_json(self, each: bool = False) -> dict[str, Any]:
        """The report; with `each`, a row for every request too."""
        outcomes, wall = self.outcomes, self.run.wall
        names = [tenant.name for tenant in self.load.tenants]
        report = {
            "server": self.server,
            "model": self.load.model,
            "began": datetime.fromtimestamp(self.began, UTC).isoformat(timespec="seconds"),
            "wall_s": wall,
            "interrupted": self.run.interrupted,
            "unfinished": self.run.n_unfinished,
            "load": self._load(),
            "targets_ms": {"ttft": self.targets.ttft * 1e3, "tpot": self.targets.tpot * 1e3},
            **summary(outcomes, wall, self.targets),
            "tenants": {
                name: summary([o for o in outcomes if o.tenant == name], wall, self.targets) for name in names
            },
            "over_time": over_time(outcomes, wall),
            "generator": {
                "lateness_ms": spread([outcome.lateness for outcome in outcomes]),
                "held": self.run.n_held,
                "cpu_share": self.cpu_s / max(wall, 1e-9),
            },
            "notes": self.notes(),
            "definitions": DEFINITIONS,
        }
        return report | ({"each": [_row(outcome) for outcome in outcomes]} if each else {})

    def _load(self) -> dict[str, Any]:
        load = self.load
        return {
            "endpoint": load.endpoint,
            "loop": "open" if load.concurrency is None else "closed",
            "arrivals": load.arrivals if load.concurrency is None else None,
            "rate": load.rate,
            "burstiness": load.burstiness if load.arrivals == "gamma" else None,
            "concurrency": load.concurrency,
            "ramp_s": load.ramp if load.concurrency is not None else None,
            "requests": load.requests,
            "duration_s": load.duration,
            "lengths": load.mix.description if load.trace is None else f"trace of {len(load.trace)} requests",
            "prefix_share": load.prefix_share,
            "prefixes": load.prefixes if load.prefix_share else None,
            "temperature": load.temperature,
            "ignore_end": load.ignore_end,
            "seed": load.seed,
            "tenants": {tenant.name: tenant.weight for tenant in load.tenants},
        }

    def notes(self) -> list[str]:
        """What makes the figures doubtful, a sentence each."""
        outcomes = self.outcomes
        good = [outcome for outcome in outcomes if outcome.error is None]
        notes = [_late(outcomes, good), *_errors(outcomes)]
        if self.run.n_held:
            notes.append(
                f"{self.run.n_held} requests waited in the generator for one of --max-in-flight to end; "
                "their latencies include it"
            )
        if bare := sum(outcome.output_tokens is None for outcome in good):
            notes.append(f"{bare} answers came without usage: their tokens are counted as pieces of text")
        if self.load.ignore_end and (early := sum(outcome.finish_reason == "stop" for outcome in good)):
            notes.append(f"{early} answers ended early: the server does not keep --ignore-end (ignore_eos)")
        if empty := sum(not outcome.deltas for outcome in good):
            notes.append(
                f"{empty} answers had no text: they have no time to first token and miss the targets"
            )
        if self.load.requests is None and len(outcomes) + self.run.n_unfinished >= MOST_REQUESTS:
            notes.append(f"the load ended at {MOST_REQUESTS:,} requests, before its --duration")
        if self.run.n_unfinished:
            notes.append(f"{self.run.n_unfinished} requests were cut off by Ctrl-C and are in no figure")
        return [note for note in notes if note]


def _late(outcomes: list[Outcome], good: list[Outcome]) -> str:
    late = spread([outcome.lateness for outcome in outcomes])
    first = spread([outcome.ttft for outcome in good if outcome.ttft is not None])
    if late is None or late["p99"] <= max(_LATE_MS, 0.1 * first["p50"] if first else 0.0):
        return ""
    return (
        f"the generator could not keep up: it was {late['p99']:,.0f} ms late at p99, which counts as "
        "latency; lower --rate or give it a core of its own"
    )


def _errors(outcomes: list[Outcome]) -> list[str]:
    """The first error of each kind, with how many there were."""
    kinds: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.error:
            kinds.setdefault(outcome.error, []).append(outcome)
    return [f"{kind}, {len(found)} requests, the first: {found[0].detail}" for kind, found in kinds.items()]


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "index": outcome.index,
        "tenant": outcome.tenant,
        "scheduled_s": outcome.scheduled,
        "started_s": outcome.started,
        "ended_s": outcome.ended,
        "ttft_s": outcome.ttft,
        "tpot_s": outcome.tpot,
        "prompt_tokens": outcome.prompt_tokens,
        "cached_tokens": outcome.cached_tokens,
        "output_tokens": outcome.n_output,
        "finish_reason": outcome.finish_reason,
        "error": outcome.error,
    }
