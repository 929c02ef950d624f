"""Open and closed loops in virtual time: sleeping takes none, so every time is exact."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import replace
from typing import Any

import pytest
from loadtest.scripted import in_virtual_time

from puna.core import BadInput
from puna.loadtest import LengthMix, Load
from puna.loadtest.load import Planned, plan
from puna.loadtest.report import Report
from puna.loadtest.run import Run, Send, run_load, warm_up
from puna.loadtest.stats import Outcome, Targets

LOAD = Load(model="m", rate=1.0, arrivals="constant", requests=6, mix=LengthMix(5, 5))


def taking(seconds: float, seen: list[int] | None = None, first: float | None = None) -> Send:
    """A server that answers a request after so long; the first one perhaps later."""

    async def send(planned: Planned, start: float, due: float) -> Outcome:
        loop = asyncio.get_running_loop()
        found = Outcome(planned.index, planned.tenant.name, due, started=loop.time() - start)
        if seen is not None:
            seen.append(planned.index)
        await asyncio.sleep(first if first is not None and planned.index == 0 else seconds)
        found.ended = loop.time() - start
        found.deltas = array("d", [found.ended])
        found.output_tokens = 1
        return found

    return send


def ran(load: Load, send: Send, stop_at: float | None = None, **options: Any) -> Run:
    async def main() -> Run:
        stop = asyncio.Event()
        if stop_at is not None:
            asyncio.get_running_loop().call_later(stop_at, stop.set)
        return await run_load(load, send, stop, lambda outcome: None, **options)

    return in_virtual_time(main())


def report_of(load: Load, run: Run) -> Report:
    return Report("here", load, Targets(), run, 0.0, 0.0)


def test_an_open_loop_does_not_wait_for_answers() -> None:
    run = ran(LOAD, taking(100.0))
    assert [o.started for o in run.outcomes] == pytest.approx([0, 1, 2, 3, 4, 5])
    assert [o.e2e for o in run.outcomes] == pytest.approx([100.0] * 6)
    assert run.wall == pytest.approx(105)
    assert (run.n_held, run.n_unfinished, run.interrupted) == (0, 0, False)


def test_requests_are_sent_when_the_plan_says() -> None:
    load = replace(LOAD, arrivals="poisson", requests=40)
    run = ran(load, taking(0.7))
    assert sorted(o.started for o in run.outcomes) == pytest.approx([p.at for p in plan(load)], abs=1e-6)
    assert max(o.lateness for o in run.outcomes) < 1e-6
    assert report_of(load, run).notes() == []


def test_the_load_is_the_same_whatever_the_answers_take() -> None:
    fast: list[int] = []
    slow: list[int] = []
    ran(LOAD, taking(0.001, fast))
    ran(LOAD, taking(50.0, slow))
    assert fast == slow == list(range(6))


def test_what_waits_for_room_counts_as_latency() -> None:
    """One request at a time, two seconds each, one a second: the k-th is k seconds late."""
    run = ran(LOAD, taking(2.0), max_in_flight=1)
    assert [o.lateness for o in run.outcomes] == pytest.approx([0, 1, 2, 3, 4, 5])
    assert [o.ttft for o in run.outcomes] == pytest.approx([2, 3, 4, 5, 6, 7])
    assert run.n_held == 5
    late, held = report_of(LOAD, run).notes()
    assert "the generator could not keep up" in late
    assert held.startswith("5 requests waited in the generator")


def test_a_generator_that_is_blocked_says_so() -> None:
    async def blocked(planned: Planned, start: float, due: float) -> Outcome:
        loop = asyncio.get_running_loop()
        found = await taking(0.0)(planned, start, due)
        # what a busy core does: time passes, nothing else happens
        loop._skipping.now += 3.0  # type: ignore[attr-defined]
        return found

    run = ran(LOAD, blocked)
    assert max(o.lateness for o in run.outcomes) > 2
    assert "could not keep up" in report_of(LOAD, run).notes()[0]


def test_a_closed_loop_keeps_its_clients_busy() -> None:
    load = replace(LOAD, rate=None, concurrency=2, requests=7)
    run = ran(load, taking(1.0))
    assert sorted(o.started for o in run.outcomes) == pytest.approx([0, 0, 1, 1, 2, 2, 3])
    assert [o.lateness for o in run.outcomes] == pytest.approx([0.0] * 7)
    assert run.wall == pytest.approx(4)


def test_clients_begin_one_after_the_other() -> None:
    load = replace(LOAD, rate=None, concurrency=4, requests=8, ramp=2.0)
    run = ran(load, taking(3.0))
    assert sorted(o.started for o in run.outcomes) == pytest.approx([0, 0.5, 1, 1.5, 3, 3.5, 4, 4.5])
    assert max(o.lateness for o in run.outcomes) < 1e-6
    with pytest.raises(BadInput, match="--ramp spreads the clients of a closed loop; add --concurrency"):
        replace(LOAD, ramp=1.0)


def test_a_closed_loop_ends_at_its_duration_and_waits_for_answers() -> None:
    load = replace(LOAD, rate=None, concurrency=3, requests=None, duration=2.5)
    run = ran(load, taking(1.0))
    assert len(run.outcomes) == 9
    assert run.wall == pytest.approx(3)


def test_stopping_keeps_what_was_measured() -> None:
    run = ran(LOAD, taking(1.5), stop_at=3.2)
    assert run.interrupted
    assert [o.index for o in run.outcomes] == [0, 1]
    assert run.n_unfinished == 2
    assert "2 requests were cut off" in report_of(LOAD, run).notes()[0]
    closed = ran(replace(LOAD, rate=None, concurrency=2), taking(1.5), stop_at=2.0)
    assert (len(closed.outcomes), closed.n_unfinished) == (2, 2)


def test_a_fault_of_our_own_is_not_hidden() -> None:
    async def broken(planned: Planned, start: float, due: float) -> Outcome:
        raise ZeroDivisionError

    for load in (LOAD, replace(LOAD, rate=None, concurrency=2)):
        with pytest.raises(ZeroDivisionError):
            ran(load, broken)


def test_warming_up_runs_a_few_at_once() -> None:
    async def main() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        found = await warm_up(LOAD, taking(1.0), 10, at_once=4)
        return len(found), loop.time()

    assert in_virtual_time(main()) == (10, pytest.approx(3.0))
