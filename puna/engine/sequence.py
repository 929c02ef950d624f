"""The state of one request inside the engine: its tokens, how far they are computed, and its blocks."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from puna.core import Chunk, Request
from puna.engine.prefix import ROOT, Images, Parent, root_of, salted

if TYPE_CHECKING:
    from puna.engine.fair_queue import Flow, Rank
    from puna.engine.pooling import Pool
    from puna.engine.sampling import SamplingState
    from puna.engine.speculate import Guesser


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and answer in one list of tokens: whatever is not computed yet is computed next.

    Decoding is the case of one missing token, prefill of several, and a preempted sequence starts again
    from 0 with its answer so far, so that the scheduler needs no phases.
    """

    request: Request
    max_len: int  # the sequence is full with this many tokens
    stop_ids: frozenset[int]
    sampling: SamplingState
    guesser: Guesser
    tokens: array[int] = field(init=False)  # prompt, then answer
    n_prompt: int = field(init=False)
    images: Images = field(init=False)  # the request's, under digests of its salt
    # set by the engine
    admitted_at: float | None = None  # perf_counter when its first step was scheduled
    n_scored: int = 0  # prompt log-probabilities reported, or rows of the prompt pooled
    pooled: Pool | None = None  # of the rows so far, where an embedding is asked for
    draft: array[int] = field(default_factory=lambda: array("i"))  # guessed next tokens
    is_forced: bool = False  # the draft comes of the grammar, and says nothing of the guesser
    # set by the fair queue
    rank: Rank = (0, 0)  # smaller goes first, in the end
    flow: Flow = field(init=False)  # of its tenant and priority
    # set by the scheduler
    n_computed: int = 0  # positions whose keys and values are in the cache
    n_cached: int | None = None  # prompt tokens found in the prefix cache when first admitted
    # set by the block manager
    blocks: array[int] = field(default_factory=lambda: array("i"))  # block table
    local_blocks: array[int] = field(default_factory=lambda: array("i"))  # from chunk.local_start on
    n_shared: int = 0  # leading blocks that the prefix cache knows
    parent: Parent = ROOT  # prefix cache entry of the last of them; without any, `root`
    chunk: Chunk = field(init=False)  # what the next step runs; the same object every step

    def __post_init__(self) -> None:
        self.tokens = array("i", self.request.prompt)
        self.n_prompt = len(self.tokens)
        self.images = salted(self.request.images, self.request.cache_salt)
        self.chunk = Chunk(
            self.tokens,
            0,
            self.blocks,
            0,
            self.images,
            self.local_blocks,
            adapter=self.request.adapter,
        )

    @property
    def n_due(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.tokens) - self.n_computed

    @property
    def root(self) -> Parent:
        """Where its prefixes begin: those of another adapter or another salt are not for it."""
        return root_of(self.request.adapter, self.request.cache_salt)

    @property
    def n_to_score(self) -> int:
        """Rows of the prompt still to be used, if they are asked for: those of all tokens for a mean, and of
        all but the last for log-probabilities.
        """
        if self.request.pooling == "mean":
            return self.n_prompt - self.n_scored
        return self.n_prompt - 1 - self.n_scored if self.request.prompt_logprobs else 0

    @property
    def n_reusable(self) -> int:
        """How many leading tokens need no computing if the prefix cache has them.

        The last token is always computed, because its logits are wanted; so is every token to be scored or
        pooled.
        """
        return self.n_scored if self.n_to_score else len(self.tokens) - 1
