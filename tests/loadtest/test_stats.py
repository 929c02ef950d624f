"""Figures of given samples against numpy's, or counted by hand."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.loadtest import Targets
from puna.loadtest.stats import Outcome, over_time, spread, summary


def outcome(
    index: int,
    scheduled: float,
    deltas: list[float],
    ended: float,
    n: int | None = None,
    error: str | None = None,
) -> Outcome:
    found = Outcome(
        index, "t", scheduled, started=scheduled, ended=ended, deltas=array("d", deltas), error=error
    )
    found.prompt_tokens, found.output_tokens = 10, n
    return found


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_percentiles_are_numpys(seconds: list[float]) -> None:
    found = spread(seconds)
    assert found is not None
    for p in (50, 90, 95, 99):
        assert found[f"p{p}"] == pytest.approx(np.quantile(np.array(seconds), p / 100) * 1e3)
    assert found["mean"] == pytest.approx(sum(seconds) / len(seconds) * 1e3)
    assert found["max"] == pytest.approx(max(seconds) * 1e3)


def test_latencies_count_from_when_a_request_was_due() -> None:
    late = outcome(0, 1.0, [4.0, 4.5, 5.5], 6.0, n=5)
    late.started = 3.0
    assert late.lateness == 2.0
    assert late.ttft == 3.0
    assert late.e2e == 5.0
    assert late.tpot == pytest.approx(1.5 / 4)  # five tokens came in three pieces


def test_an_answer_of_one_token_or_none_has_no_time_per_token() -> None:
    assert outcome(0, 0.0, [1.0], 1.0, n=1).tpot is None
    empty = outcome(0, 0.0, [], 1.0, n=0)
    assert (empty.ttft, empty.tpot, empty.n_output) == (None, None, 0)
    assert outcome(0, 0.0, [1.0, 2.0], 2.0).n_output == 2  # no usage: pieces are counted


def test_a_summary_counted_by_hand() -> None:
    targets = Targets(ttft=1.0, tpot=0.5)
    found = summary(
        [
            outcome(0, 0.0, [0.5, 1.0], 1.0, n=2),  # meets both
            outcome(1, 0.0, [1.0, 1.5], 1.5, n=2),  # at both targets: meets them
            outcome(2, 0.0, [1.5, 1.6], 1.6, n=2),  # first token too late
            outcome(3, 0.0, [0.5, 2.5], 2.5, n=2),  # tokens too slow
            outcome(4, 0.0, [0.1], 0.2, n=1),  # one token, soon
            outcome(5, 0.0, [0.1, 0.2], 3.0, error="status_500"),
            outcome(6, 0.0, [], 3.0, error="timeout"),
            outcome(7, 0.0, [], 3.0, error="timeout"),
        ],
        4.0,
        targets,
    )
    assert found["goodput"] == {"share": 3 / 8, "requests_per_s": 3 / 4}
    assert (found["requests"], found["succeeded"]) == (8, 5)
    assert found["errors"] == {"timeout": 2, "status_500": 1}
    assert found["output_tokens_per_s"] == 9 / 4
    assert found["total_tokens_per_s"] == (9 + 50) / 4
    assert found["requests_per_s"] == 5 / 4
    assert found["cached_tokens"] is None
    ttft = np.array([0.5, 1.0, 1.5, 0.5, 0.1]) * 1e3
    assert found["ttft_ms"]["p90"] == pytest.approx(np.quantile(ttft, 0.9))
    assert found["itl_ms"]["p50"] == pytest.approx(500)  # of 500, 500, 100 and 2000
    assert found["itl_ms"]["max"] == pytest.approx(2000)


def test_nothing_has_no_figures() -> None:
    found = summary([], 0.0, Targets())
    assert found["ttft_ms"] is None
    assert found["goodput"]["share"] == 0


def test_the_default_targets_are_mlperfs() -> None:
    assert (Targets().ttft, Targets().tpot) == (0.450, 0.040)


def test_over_time_counts_every_token_and_every_second() -> None:
    outcomes = [outcome(0, 0.0, [0.5, 1.5, 3.9], 4.0, n=6), outcome(1, 1.0, [2.5], 3.0, n=1)]
    found = over_time(outcomes, 4.0)
    assert found["bin_s"] == 1.0
    assert found["running"] == [1, 2, 2, 1]
    assert found["output_tokens_per_s"] == [2, 2, 1, 2]


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.integers(1, 9)), min_size=1, max_size=20),
)
def test_over_time_loses_nothing(requests: list[tuple[float, float, int]]) -> None:
    outcomes = [
        outcome(i, start, list(np.linspace(start, start + length, n)), start + length)
        for i, (start, length, n) in enumerate(requests)
    ]
    wall = max(o.ended for o in outcomes)
    found = over_time(outcomes, wall, most_bins=13)
    width = found["bin_s"]
    assert len(found["running"]) <= 13
    total = sum(found["output_tokens_per_s"]) * width
    assert total == pytest.approx(sum(n for *_, n in requests), rel=0.02)
    running = sum(found["running"]) * width
    assert running == pytest.approx(sum(o.ended - o.started for o in outcomes), abs=0.02 * wall + 1e-6)
