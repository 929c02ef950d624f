"""Priorities and shares, over integers: what the scheduler promises to tenants, against any load.

Tokens that steps ran are counted here, from the chunks; nothing is read from the scheduler's own counters.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core import Request, SamplingParams
from puna.engine.blocks import BlockManager
from puna.engine.config import EngineConfig
from puna.engine.sampling import SamplingState
from puna.engine.scheduler import Scheduler
from puna.engine.sequence import Sequence
from puna.engine.speculate import Guesser

PARAMS = SamplingParams()
BLOCK = 4


class Load:
    """A scheduler, the sequences it has, and what each step ran. Prompts share no beginning."""

    def __init__(self, n_blocks: int = 64, ageing: int = 50, **limits: int) -> None:
        config = EngineConfig(ageing_steps=ageing, **limits)
        self.sched = Scheduler(config, BlockManager(n_blocks, BLOCK), max_rows=256)
        self.config = config
        self.n_steps = 0
        self.first_step: dict[Sequence, int] = {}
        self.last_step: dict[Sequence, int] = {}
        self.live: list[Sequence] = []
        self.served: Counter[str] = Counter()
        self._serial = 0

    def add(self, tenant: str, n_prompt: int, n_answer: int, priority: int = 0) -> Sequence:
        self._serial += 1
        prompt = array("i", [self._serial] * n_prompt)
        request = Request(prompt, PARAMS, tenant=tenant, priority=priority)
        seq = Sequence(request, n_prompt + n_answer, frozenset(), SamplingState(PARAMS, [], [], 0), Guesser())
        self.sched.add(seq)
        self.live.append(seq)
        return seq

    def step(self) -> list[Sequence]:
        n_preempted = self.sched.counters.preemptions
        scheduled = list(self.sched.schedule())
        self.n_steps += 1
        self.check(scheduled, self.sched.counters.preemptions > n_preempted)
        for seq in scheduled:
            self.first_step.setdefault(seq, self.n_steps)
            self.served[seq.request.tenant] += len(seq.chunk.tokens)
            end = seq.chunk.start + len(seq.chunk.tokens)
            if end == len(seq.tokens):
                seq.tokens.append(self._serial)
            self.sched.advance(seq, end)
            if len(seq.tokens) == seq.max_len:
                self.last_step[seq] = self.n_steps
                self.live.remove(seq)
                self.sched.remove(seq)
        return scheduled

    def check(self, scheduled: list[Sequence], has_preempted: bool) -> None:
        """Work conserving: a step runs something if there is anything; none is left over that had room."""
        sched, n_tokens = self.sched, sum(len(seq.chunk.tokens) for seq in scheduled)
        assert scheduled or not self.live
        assert n_tokens <= self.config.max_step_tokens
        assert len(set(map(id, scheduled))) == len(scheduled)
        assert len(sched.running) + len(sched.queue) == len(self.live)
        assert sched.running == sorted(sched.running, key=lambda seq: seq.rank)
        if n_tokens < self.config.max_step_tokens and not has_preempted:
            assert set(sched.running) == set(scheduled)
            heads = [sched.queue.first_in_turn(), sched.queue._first_in_rank()]
            if heads[0] is not None and len(sched.running) < sched._max_running:
                assert any(head and max(sched.blocks.lacking(head, len(sched.running))) > 0 for head in heads)

    def drain(self, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.live:
                return
            self.step()
        raise AssertionError(f"{len(self.live)} are left after {limit} steps")


lengths = st.tuples(st.integers(1, 60), st.integers(1, 40))
limits = st.fixed_dictionaries(
    {
        "n_blocks": st.integers(26, 90),
        "max_step_tokens": st.sampled_from([2, 5, 16, 64]),
        "max_running": st.sampled_from([1, 2, 4, 16]),
    }
)


@given(
    limits,
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from("abc"), st.sampled_from([-5, 0, 0, 3]), lengths),
        max_size=25,
    ),
    st.lists(st.integers(0, 60), max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_everything_ends_whatever_arrives_and_is_cancelled(
    limits: dict[str, int],
    arrivals: list[tuple[int, str, int, tuple[int, int]]],
    cancellations: list[int],
) -> None:
    load = Load(**limits)
    for gap, tenant, priority, (n_prompt, n_answer) in arrivals:
        for _ in range(gap):
            load.step()
        load.add(tenant, n_prompt, n_answer, priority)
        if cancellations and load.n_steps > cancellations[-1]:
            cancellations.pop()
            load.sched.remove(load.live.pop())
    load.drain()
    assert load.sched.blocks.n_free == limits["n_blocks"]
    assert not load.sched.queue._levels


@given(limits, st.lists(st.tuples(st.integers(0, 5), lengths), min_size=2, max_size=15))
@settings(max_examples=50, deadline=None)
def test_one_tenant_and_priority_is_the_order_of_arrival(
    limits: dict[str, int], arrivals: list[tuple[int, tuple[int, int]]]
) -> None:
    load = Load(**limits)
    seqs = []
    for gap, (n_prompt, n_answer) in arrivals:
        for _ in range(gap):
            load.step()
        seqs.append(load.add("a", n_prompt, n_answer))
    load.drain()
    begun = [load.first_step[seq] for seq in seqs]
    assert begun == sorted(begun)


def backlogged(load: Load, kinds: dict[str, Iterator[tuple[int, int]]], n_steps: int) -> list[Counter[str]]:
    """What each tenant was served up to each step, all having requests waiting all the time."""
    history = []
    for _ in range(n_steps):
        waiting = Counter(seq.request.tenant for seq in load.sched.queue.in_order())
        for tenant, kind in kinds.items():
            for _ in range(20 - waiting[tenant]):
                load.add(tenant, *next(kind))
        load.step()
        history.append(Counter(load.served))
    return history


@given(limits, st.randoms(use_true_random=False), st.integers(2, 4))
@settings(max_examples=12, deadline=None)
def test_tenants_with_work_get_equal_service(limits: dict[str, int], rng: object, n_tenants: int) -> None:
    """The bound of Sheng et al. 2024, theorem 4.4: twice the larger of a prompt and what the cache holds; and
    once more what it holds, as every request in it may have had its turn by age."""
    load = Load(**limits)

    def kind(n_prompt: int, n_answer: int) -> Iterator[tuple[int, int]]:
        while True:
            yield rng.randint(1, n_prompt), rng.randint(1, n_answer)  # type: ignore[attr-defined]

    shapes = [(60, 5), (3, 40), (30, 30), (10, 2)]
    tenants = {str(i): kind(*shapes[i]) for i in range(n_tenants)}
    history = backlogged(load, tenants, 400)
    bound = 3 * max(60, limits["n_blocks"] * BLOCK)
    for one in tenants:
        for other in tenants:
            ahead = [served[one] - served[other] for served in history]
            assert max(ahead) - min(ahead) <= bound


@given(limits, st.integers(0, 150), lengths, lengths)
@settings(max_examples=20, deadline=None)
def test_a_flood_delays_nobody_else(
    limits: dict[str, int], when: int, flood: tuple[int, int], single: tuple[int, int]
) -> None:
    limits["max_running"] = max(2, limits["max_running"])
    limits["max_step_tokens"] = max(16, limits["max_step_tokens"])
    load = Load(**limits)
    for _ in range(1000):
        load.add("flood", *flood)
    for _ in range(when):
        load.step()
    n_prompt, n_answer = min(single[0], 20), min(single[1], 10)  # a third of the blocks at most
    seq = load.add("single", n_prompt, n_answer)
    for _ in range(40 + 2 * n_answer):
        load.step()
        if seq in load.last_step:
            break
    assert load.first_step[seq] <= when + 8
    assert load.last_step[seq] <= when + 40 + 2 * n_answer


def test_an_idle_tenant_saves_no_credit() -> None:
    load = Load(max_step_tokens=16, max_running=2)
    for _ in range(200):
        load.add("busy", 8, 8)
    for _ in range(300):
        load.step()
    load.served.clear()
    for _ in range(100):
        load.add("late", 8, 8)
    for _ in range(100):
        load.step()
    assert abs(load.served["late"] - load.served["busy"]) < 60


def test_higher_priorities_go_first_and_take_places() -> None:
    load = Load(max_running=2, max_step_tokens=32)
    low = [load.add("a", 4, 30, priority=-1) for _ in range(4)]
    load.step()
    assert set(load.sched.running) == set(low[:2])
    high = [load.add("a", 4, 5, priority=1), load.add("b", 4, 5, priority=1)]
    load.step()
    assert set(load.sched.running) == set(high)
    load.drain()
    assert max(load.last_step[seq] for seq in high) < min(load.last_step[seq] for seq in low)
    assert load.last_step[low[0]] < load.last_step[low[3]]


@pytest.mark.parametrize("tenants", ["a", "abcdefghijklmnopqrstuvwxyz"])
def test_age_brings_the_lowest_through_an_endless_rush(tenants: str) -> None:
    """Higher ones come faster than they can be served, for ever: all of one tenant, or each of another."""
    load = Load(ageing=5, max_running=2, max_step_tokens=16)
    low = load.add("low", 30, 10, priority=-10)
    large = load.add("large", 100, 20, priority=0)  # most of the cache
    for n in range(3000):
        load.add(f"{tenants[n % len(tenants)]}{n if len(tenants) > 1 else ''}", 5, 5, priority=0)
        load.step()
        if low in load.last_step and large in load.last_step:
            break
    assert low in load.last_step
    assert large in load.last_step


def test_the_lowest_priority_gives_up_its_blocks_and_goes_on() -> None:
    load = Load(n_blocks=12, max_running=4)
    low, high = load.add("a", 8, 30, priority=0), load.add("a", 8, 30, priority=2)
    while not load.sched.counters.preemptions:
        load.step()
    assert load.sched.queue.in_order() == [low]
    load.drain()
    assert load.last_step[high] < load.last_step[low]


def test_what_waits_and_is_cancelled_leaves_nothing_behind() -> None:
    load = Load(max_running=2)
    for _ in range(3):
        load.add("a", 5, 10_000)
    load.step()
    for i in range(2000):
        for tenant in ("b", str(i)):
            seq = load.add(tenant, 5, 5)
            if not i % 25:
                load.step()
            load.live.remove(seq)
            load.sched.remove(seq)
    queue = load.sched.queue
    assert len(queue) <= 3
    assert len(queue._by_rank) < 100
    flows = [flow for level in queue._levels.values() for flow in level.flows.values()]
    assert len(flows) + sum(len(level.due) for level in queue._levels.values()) < 300
    assert sum(len(flow.line) for flow in flows) < 300
