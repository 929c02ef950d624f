"""Figures of an engine: what it does now, and what it has done since it was made.

The engine's thread alone writes Counters, as plain numbers and without a lock; any thread may make a
snapshot of them. Each number of a snapshot is whole, but two of them may be a step apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puna.engine.masks import GrammarStats


@dataclass(slots=True)
class Counters:
    """Sums since the engine was made; a rate of them is what a dashboard shows."""

    steps: int = 0
    failed_steps: int = 0
    step_seconds: float = 0.0  # with sampling; without waiting for requests
    step_tokens: int = 0  # that steps ran: prompts, answers and guesses
    step_sequences: int = 0  # that steps ran, summed: over `steps` it is the mean batch
    prefill_tokens: int = 0  # of prompts, and of what is computed again after a preemption
    generated_tokens: int = 0  # chosen, with those that end an answer
    preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache, at first admission
    prefix_hits: int = 0  # of them, found there
    proposed_tokens: int = 0  # guessed
    accepted_tokens: int = 0  # of them, what the sampler chose too


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. The first group is of the moment, the rest sums that only grow (Counters, GrammarStats); at
    the end, what a mask of all so far costs."""

    running: int  # sequences that hold cache blocks
    waiting: int  # requests accepted that hold none
    waiting_tenants: int  # tenants that have any of those
    last_step_tokens: int
    last_step_sequences: int
    kv_blocks: int  # in all
    kv_blocks_used: int  # held by running sequences
    kv_blocks_cached: int  # free, with contents that an equal prefix would find
    kv_block_tokens: int  # positions of a block
    steps: int
    failed_steps: int
    step_seconds: float
    step_tokens: int
    step_sequences: int
    prefill_tokens: int
    generated_tokens: int
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    proposed_tokens: int
    accepted_tokens: int
    masks: int  # computed for grammars
    mask_seconds: float  # that a thread beside the step computed them
    mask_waited_seconds: float  # that steps came later for it
    mask_median: float  # seconds of one mask, and so of a token
    mask_p99: float


def snapshot(counters: Counters, grammar: GrammarStats, **now: int) -> EngineStats:
    """`now` are the fields of the first group."""
    return EngineStats(
        **now,
        **asdict(counters),
        masks=grammar.n_masks,
        mask_seconds=grammar.computing,
        mask_waited_seconds=grammar.waited,
        mask_median=grammar.quantile(0.5),
        mask_p99=grammar.quantile(0.99),
    )
