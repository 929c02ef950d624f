"""The result of a run as the JSON object that docs/bench.md describes, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from puna.bench.jobs import BenchConfig, Job, Limits, ModelCost
from puna.bench.rounds import Result, Sample, Spread, result_of, speedup
from puna.bench.start import Start

DEFINITIONS = {
    "decode": "share_of_limit is the bytes that the steps must read (every weight matrix once a step, of "
    "the embedding table only what serves as output head, of experts those that a token is sent to, and all "
    "keys and values cached before the token) "
    "divided by the time, divided by the read bandwidth of the same round",
    "prefill": "share_of_limit is two operations for every multiply-accumulate of the model (all matrices "
    "for every token of the prompt, the output head for the last one only, causal attention), divided by "
    "the time, divided by the int8 peak of the same round (for matrices of floats: the bf16 peak)",
    "batch": "share_of_limit is held to reading or to multiplying, whichever takes longer; of experts, as "
    "many are counted as an even router sends the tokens of a step to; speedup is the "
    "tokens per second of the batch divided by those of one stream in the same round",
    "peers": "ratio is our tokens per second divided by the peer's in the same round",
    "spread": "a value is the median of all rounds; _min and _max are the extremes",
}


@dataclass(frozen=True, slots=True)
class PeerInfo:
    engine: str
    version: str
    format: str  # what it ran: the same file, or the same model in another format
    load_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that a run found out."""

    puna: str  # version
    model: dict[str, Any]
    settings: dict[str, Any]  # threads, target, cache type
    config: BenchConfig
    cost: ModelCost
    limits: Sequence[Limits]
    samples: Mapping[Job, Sequence[Sample]]
    start: Start | None
    peers: Sequence[PeerInfo]
    skipped: Sequence[str]

    def results(self, *, kind: str) -> list[Result]:
        return [result_of(job, s, self.cost) for job, s in self.samples.items() if job.kind == kind]


def spread(name: str, values: Spread, digits: int = 4) -> dict[str, float]:
    """Three keys of the JSON object, rounded to significant digits."""

    def short(value: float) -> float:
        return float(f"{value:.{digits}g}")

    return {
        name: short(values.median),
        f"{name}_min": short(values.min),
        f"{name}_max": short(values.max),
    }


def to_json(outcome: Outcome) -> dict[str, Any]:
    decode = outcome.results(kind="decode")
    alone = [result for result in decode if result.job.streams == 1]
    report: dict[str, Any] = {
        "puna": outcome.puna,
        "model": outcome.model,
        "machine": outcome.settings | _machine(outcome.limits),
        "config": asdict(outcome.config),
        "prefill": [
            {"tokens": result.job.prompt, **_speeds(result), "first_token_s": _first_token_s(result)}
            for result in outcome.results(kind="prefill")
        ],
        "decode": [{"depth": _depth(result.job), **_speeds(result)} for result in alone],
        "batch": _batches(outcome, decode),
        "serve": [_serve(result) for result in outcome.results(kind="serve")],
        "start": asdict(outcome.start) if outcome.start else None,
        "peers": [_peer(outcome, i, info) for i, info in enumerate(outcome.peers)],
        "skipped": list(outcome.skipped),
        "definitions": DEFINITIONS,
    }
    return report


def _depth(job: Job) -> int:
    return job.prompt if job.prompt > 1 else 0


def _first_token_s(result: Result) -> float:
    return round(result.job.prompt / result.tok_s.median, 4)


def _speeds(result: Result) -> dict[str, Any]:
    return {**spread("tok_s", result.tok_s), **spread("share_of_limit", result.share), "limit": result.limit}


def _machine(limits: Sequence[Limits]) -> dict[str, float]:
    found: dict[str, float] = {}
    for field in fields(Limits):
        found |= spread(field.name, Spread.of(getattr(limit, field.name) for limit in limits))
    return found


def _batches(outcome: Outcome, decode: Sequence[Result]) -> list[dict[str, Any]]:
    """Rows of `batch`; a batch of one is there if asked for, and what the others are compared with."""
    by_size = {result.job.streams: result for result in decode if result.job.prompt == 1}
    rows = []
    for size, result in sorted(by_size.items()):
        if size not in outcome.config.batches:
            continue
        row: dict[str, Any] = {"batch": size, **_speeds(result)}
        if 1 in by_size:
            one = outcome.samples[by_size[1].job]
            row |= spread("speedup", speedup(outcome.samples[result.job], one, size))
        rows.append(row)
    return rows


def _serve(result: Result) -> dict[str, Any]:
    job = result.job
    return {"streams": job.streams, "prompt": job.prompt, "output": job.output, **_speeds(result)}


def _peer(outcome: Outcome, i: int, info: PeerInfo) -> dict[str, Any]:
    """A peer's own rows; decode_ratio and prefill_ratio are those of the first depth and prompt."""
    rows: dict[str, list[dict[str, Any]]] = {"prefill": [], "decode": [], "batch": [], "serve": []}
    for kind in ("prefill", "decode", "serve"):
        for result in outcome.results(kind=kind):
            job, where = result.job, kind
            speeds = {**spread("tok_s", result.peer_tok_s[i]), **spread("ratio", result.ratios[i])}
            if kind == "decode" and job.streams > 1:
                where, key = "batch", {"batch": job.streams}
            elif kind == "decode":
                key = {"depth": _depth(job)}
            elif kind == "prefill":
                key = {"tokens": job.prompt}
            else:
                key = {"streams": job.streams, "prompt": job.prompt, "output": job.output}
            rows[where].append({**key, **speeds})
    first = {
        f"{kind}_ratio": rows[kind][0]["ratio"] if rows[kind] else None for kind in ("prefill", "decode")
    }
    return {**asdict(info), **first, **rows}


def table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: every job, with its share and how each peer did."""
    header = ["", "tok/s", "min-max", "of the limit"]
    for info in outcome.peers:
        header += [f"{info.engine} ({info.format})", "ratio"]
    rows = []
    for job, samples in outcome.samples.items():
        result = result_of(job, samples, outcome.cost)
        row = [job.name, number(result.tok_s.median), extremes(result.tok_s)]
        row.append(f"{result.share.median:.0%} {result.limit}")
        for theirs, ratio in zip(result.peer_tok_s, result.ratios, strict=True):
            row += [number(theirs.median), f"{ratio.median:.2f} ({ratio.min:.2f}-{ratio.max:.2f})"]
        rows.append(row)
    return header, rows


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def extremes(values: Spread) -> str:
    return f"{number(values.min)}-{number(values.max)}"
