"""Rounds: the limits, our engine and each peer run the same job one after the other, several times over.

A machine drifts by tens of percent within minutes, and neighbours come and go; what is compared must be
measured side by side. So every share and ratio is formed within a round, and the report shows the median of
those and their extremes. The first round warms everything up and is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from puna.bench.jobs import Job, Limits, ModelCost


class Runs(Protocol):
    def run(self, job: Job) -> float:
        """Seconds of the timed part."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One job in one round; seconds."""

    limits: Limits
    ours: float
    peers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(median(found), min(found), max(found))


def measure(
    jobs: Sequence[Job],
    n_rounds: int,
    probe: Callable[[], Limits],
    ours: Runs,
    peers: Sequence[Runs],
    tick: Callable[[str], None],
) -> dict[Job, list[Sample]]:
    """`tick` is told what comes next, (n_rounds + 1) * len(jobs) times."""
    samples: dict[Job, list[Sample]] = {job: [] for job in jobs}
    for i in range(n_rounds + 1):
        for job in jobs:
            tick(f"round {i} of {n_rounds}: {job.name}" if i else f"warming up: {job.name}")
            sample = Sample(probe(), ours.run(job), tuple(peer.run(job) for peer in peers))
            if i:
                samples[job].append(sample)
    return samples


@dataclass(frozen=True, slots=True)
class Result:
    """One job over all rounds."""

    job: Job
    tok_s: Spread
    share: Spread  # of the limit
    limit: str  # "read" or "multiply"
    peer_tok_s: tuple[Spread, ...]
    ratios: tuple[Spread, ...]  # ours to each peer


def result_of(job: Job, samples: Sequence[Sample], cost: ModelCost) -> Result:
    """Decoding alone is held to reading, prefill to multiplying, batches to whichever takes longer."""
    work = cost.work(job)
    reads = [work.read_seconds(s.limits) / s.ours for s in samples]
    multiplies = [work.multiply_seconds(s.limits) / s.ours for s in samples]
    is_read = median(reads) > median(multiplies)
    if job.kind == "prefill" or (job.kind == "decode" and job.streams == 1):
        is_read = job.kind == "decode"
    n_peers = range(len(samples[0].peers))
    return Result(
        job,
        tok_s=Spread.of(job.n_tokens / s.ours for s in samples),
        share=Spread.of(reads if is_read else multiplies),
        limit="read" if is_read else "multiply",
        peer_tok_s=tuple(Spread.of(job.n_tokens / s.peers[i] for s in samples) for i in n_peers),
        ratios=tuple(Spread.of(s.peers[i] / s.ours for s in samples) for i in n_peers),
    )


def speedup(samples: Sequence[Sample], one: Sequence[Sample], streams: int) -> Spread:
    """Tokens per second of a batch to those of one stream in the same round."""
    return Spread.of(streams * b.ours / a.ours for a, b in zip(samples, one, strict=True))
