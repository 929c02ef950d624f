from __future__ import annotations

from array import array

import pytest

from puna.core import Request, SamplingParams
from puna.engine.blocks import BlockManager
from puna.engine.config import EngineConfig
from puna.engine.sampling import SamplingState
from puna.engine.scheduler import Scheduler
from puna.engine.sequence import Sequence
from puna.engine.speculate import Guesser


def scheduler(n_blocks: int, max_rows: int = 20, **limits: int) -> Scheduler:
    return Scheduler(EngineConfig(**limits), BlockManager(n_blocks, block_size=2), max_rows)


def add(sched: Scheduler, n_prompt: int, prompt_logprobs: bool = False) -> Sequence:
    params, prompt = SamplingParams(), [7] * n_prompt
    request = Request(prompt, params, prompt_logprobs=prompt_logprobs)
    seq = Sequence(request, 1000, frozenset(), SamplingState(params, prompt, [], 0), Guesser())
    sched.add(seq)
    return seq


def step(sched: Scheduler) -> list[Sequence]:
    """One step in which every sequence that reaches its end gets a token of its own, and no guess is
    right.
    """
    scheduled = sched.schedule()
    for seq in scheduled:
        n_known = len(seq.tokens)
        end = min(seq.chunk.start + len(seq.chunk.tokens), n_known)
        seq.n_scored = max(seq.n_scored, min(end, seq.n_prompt - 1)) if seq.request.prompt_logprobs else 0
        seq.draft = array("i")
        if end == n_known:
            seq.tokens.append(1000 + seq.request.id)
        sched.advance(seq, end)
    return scheduled


def test_nothing_to_do() -> None:
    assert scheduler(4).schedule() == []


def test_the_newest_gives_way_and_comes_back_first() -> None:
    sched = scheduler(n_blocks=6)
    old, new = add(sched, 4), add(sched, 3)
    waiting = add(sched, 12)
    assert step(sched) == [old, new]
    assert step(sched) == [old, new]  # old now has 3 blocks, new 2
    assert step(sched) == [old, new]
    while new in sched.running:
        step(sched)
    assert sched.queue.in_order() == [new, waiting]
    assert not new.blocks
    sched.remove(old)
    assert step(sched) == [new]
    assert new.chunk.start % 2 == 0
    assert len(new.chunk.tokens) == len(new.tokens) - 1 - new.chunk.start


def test_a_preempted_sequence_finds_its_blocks_in_the_cache() -> None:
    sched = scheduler(n_blocks=6)
    old, new = add(sched, 4), add(sched, 3)
    step(sched)
    while new in sched.running:
        step(sched)
    n_tokens = len(new.tokens)
    sched.remove(old)
    assert step(sched) == [new]
    assert new.chunk.start == (n_tokens - 1) // 2 * 2
    assert new.n_cached == 0  # what counts is the first time


def test_guesses_cost_nobody_a_block() -> None:
    sched = scheduler(n_blocks=6)
    one, two = add(sched, 3), add(sched, 5)
    step(sched)
    for guesses, n_run in [([5] * 4, 1), ([5], 1), ([], 1)]:  # one block is free, and two will need it
        one.draft = array("i", guesses)
        sched._n_tokens_left = 100
        assert sched._make_room(one)
        assert 1 + len(one.draft) == n_run
    assert two in sched.running


def test_spare_rows_are_shared_by_scoring_and_guesses() -> None:
    sched = scheduler(n_blocks=40, max_rows=10, max_running=2, max_guesses=4)
    assert sched.max_guesses == 4
    decoding = add(sched, 3)
    step(sched)
    scored = add(sched, 30, prompt_logprobs=True)
    decoding.draft = array("i", [5, 5, 5])
    step(sched)
    assert [(seq.chunk.n_logits, len(seq.chunk.tokens)) for seq in (decoding, scored)] == [(4, 4), (6, 6)]
    step(sched)
    assert [(seq.chunk.n_logits, len(seq.chunk.tokens)) for seq in (decoding, scored)] == [(1, 1), (9, 9)]


@pytest.mark.parametrize(("max_step_tokens", "max_rows"), [(1, 1), (2, 1), (1, 5), (3, 3)])
def test_the_smallest_limits_still_move_on(max_step_tokens: int, max_rows: int) -> None:
    sched = scheduler(10, max_rows, max_step_tokens=max_step_tokens)
    seqs = [add(sched, 4), add(sched, 4, prompt_logprobs=True), add(sched, 1)]
    for seq in seqs:
        for _ in range(8):
            scheduled = step(sched)
            assert 0 < sum(len(s.chunk.tokens) for s in scheduled) <= max_step_tokens
            assert sum(s.chunk.n_logits for s in scheduled) <= max_rows
        assert len(seq.tokens) > seq.n_prompt
        sched.remove(seq)


def test_cancelling_what_blocks_the_queue_lets_the_next_one_in() -> None:
    sched = scheduler(n_blocks=5)
    running, large, small = add(sched, 4), add(sched, 10), add(sched, 1)
    assert step(sched) == [running]
    assert step(sched) == [running]
    sched.remove(large)
    assert step(sched) == [running, small]


def crowd(n: int, **limits: int) -> tuple[Scheduler, list[Sequence]]:
    """A scheduler whose n sequences decode, and that takes so many for a crowd."""
    sched = scheduler(n_blocks=400, max_rows=64, crowd=n, **limits)
    seqs = [add(sched, 3) for _ in range(n)]
    while any(len(seq.tokens) == seq.n_prompt for seq in seqs):
        step(sched)
    return sched, seqs


def test_short_prompts_do_not_wait_for_a_crowd() -> None:
    sched, seqs = crowd(4, max_step_tokens=32)
    new = [add(sched, 10), add(sched, 12)]
    assert sched.prompts_go_alone()
    assert sched.schedule() == new
    for seq in new:
        sched.advance(seq, seq.n_prompt)
        seq.tokens.append(1)
    assert not sched.prompts_go_alone()
    assert sched.schedule() == seqs + new


def test_a_crowd_has_every_second_step_at_least() -> None:
    sched, seqs = crowd(4, max_step_tokens=32)
    n_before = len(seqs[0].tokens)
    for _ in range(20):
        sched.remove(add(sched, 8)) if len(sched.running) > 6 else add(sched, 8)
        step(sched)
    assert len(seqs[0].tokens) - n_before >= 10


@pytest.mark.parametrize("case", ["a few", "long", "two of half", "scored"])
def test_other_prompts_go_with_the_crowd(case: str) -> None:
    """Where a step of their own would not be enough, or would spare them little."""
    sched, seqs = crowd(4, max_step_tokens=32)
    if case == "a few":
        sched.remove(seqs.pop())
    lengths = {"a few": [10], "long": [40], "two of half": [17, 17], "scored": [10]}[case]
    for n in lengths:
        add(sched, n, prompt_logprobs=case == "scored")
    assert set(step(sched)) > set(seqs)


def test_what_does_not_fit_leaves_the_step_to_the_crowd() -> None:
    sched = scheduler(n_blocks=8, max_rows=64, crowd=2, max_step_tokens=32)
    seqs = [add(sched, 3), add(sched, 3)]
    for _ in range(3):
        step(sched)
    add(sched, 9)
    assert step(sched) == seqs
