"""Rounds are interleaved, shares and ratios are formed within a round."""

from __future__ import annotations

import pytest

from puna.bench.jobs import Job, Limits, ModelCost, decode_at
from puna.bench.rounds import Sample, Spread, measure, result_of, speedup

LIMITS = Limits(10, 1, 1)
COST = ModelCost(10**9, 10**9, 0, 0, False, 0, 0)  # 0.1 s to read, 2 ms to multiply a token


class Engine:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, job: Job) -> float:
        self.log.append(f"{self.name} {job.prompt}")
        return len(self.log) / 10


def test_everybody_takes_turns_and_the_first_round_does_not_count() -> None:
    log: list[str] = []

    def probe() -> Limits:
        log.append("limits")
        return LIMITS

    ticks: list[str] = []
    jobs = [Job("prefill", 1), Job("prefill", 2)]
    found = measure(jobs, 2, probe, Engine("ours", log), [Engine("peer", log)], ticks.append)
    turn = ["limits", "ours 1", "peer 1", "limits", "ours 2", "peer 2"]
    assert log == turn * 3
    assert [len(samples) for samples in found.values()] == [2, 2]
    assert found[jobs[0]][0] == Sample(LIMITS, ours=0.8, peers=(0.9,))
    assert ticks[0] == "warming up: prefill 1"
    assert ticks[-1] == "round 2 of 2: prefill 2"
    assert len(ticks) == 6


def test_ratios_come_from_within_a_round() -> None:
    """Ours drifts by half, the peer with it: the ratio does not."""
    job = decode_at(0, 1)
    samples = [Sample(Limits(10 / slow, 1, 1), 0.2 * slow, (0.6 * slow,)) for slow in (1, 1.5, 2)]
    result = result_of(job, samples, COST)
    assert result.ratios == (Spread(pytest.approx(3), pytest.approx(3), pytest.approx(3)),)
    assert result.share == Spread(pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    assert result.limit == "read"
    assert result.tok_s == Spread(pytest.approx(1 / 0.3), pytest.approx(2.5), pytest.approx(5))


def test_what_a_job_is_held_to() -> None:
    sample = [Sample(LIMITS, 1, ())]
    assert result_of(Job("prefill", 1), sample, COST).limit == "multiply"
    assert result_of(decode_at(0, 1, 4), sample, COST).limit == "read"
    assert result_of(decode_at(0, 1, 100), sample, COST).limit == "multiply"


def test_speedup_compares_rounds_pairwise() -> None:
    one = [Sample(LIMITS, 1, ()), Sample(LIMITS, 2, ())]
    eight = [Sample(LIMITS, 2, ()), Sample(LIMITS, 4, ())]
    assert speedup(eight, one, 8) == Spread(4, 4, 4)
