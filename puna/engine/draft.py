"""A draft model: a small model guesses what the large one goes on with (Leviathan et al. 2023).

The draft is another executor, with a cache and a prefix cache of its own, which runs before each step of the
large one. It draws its guesses by the parameters and the random number that the sampler will draw the token
at that place with: so guesses at a temperature come true about as often as the two distributions agree, and
a right guess is one that is exactly the token. Only integers and rows of logits.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence as List
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from puna.core import Batch, Chunk, Executor, Request, Unsupported
from puna.engine.blocks import BlockManager
from puna.engine.sampling import Sampler
from puna.engine.sequence import Sequence
from puna.engine.speculate import NO_GUESS, Guesser, Pace


@dataclass(slots=True, eq=False)
class _Shadow:
    """A sequence as the draft has it."""

    seq: Sequence  # its tokens are those of the large model's up to the last propose()
    pace: Pace = field(default_factory=Pace)
    ahead: array[int] = field(default_factory=lambda: array("i"))  # guesses computed behind all of its tokens


class DraftModel:
    """speculate.Proposer over `executor`, which it closes in the end. A step of it runs `max_tokens` at most.

    Raises Unsupported for a draft whose layers have blocks of their own (chunked attention).
    """

    def __init__(self, executor: Executor, max_tokens: int) -> None:
        if executor.local_window:
            raise Unsupported(
                "a model with chunked attention and a context longer than a chunk cannot be the draft of "
                "another; choose a dense one"
            )
        self._executor = executor
        self._max_tokens = max_tokens
        self._capacity = min(executor.context_length, executor.n_blocks * executor.block_size)
        self._blocks = BlockManager(executor.n_blocks, executor.block_size)
        self._sampler = Sampler(executor.vocab_size)
        self._shadows: OrderedDict[int, _Shadow] = OrderedDict()  # by request id, least recently used first
        self._n_tokens_left = 0  # of this step's prefill

    def propose(self, asked: List[tuple[Sequence, int]]) -> None:
        """See speculate.Proposer. What is new of a sequence is computed first, maybe over several steps."""
        self._n_tokens_left = self._max_tokens
        ready: list[tuple[Sequence, _Shadow, int]] = []
        for seq, limit in asked:
            seq.draft = NO_GUESS
            shadow = self._shadow(seq, limit)
            if shadow is not None:
                ready.append((seq, shadow, min(limit, shadow.pace.length)))
        ready = self._catch_up(ready)
        while ready:
            ready = [item for item in ready if len(item[1].ahead) < item[2] - 1]
            self._run([(seq, shadow, seq.draft[-1:]) for seq, shadow, _ in ready])

    def learn(self, seq: Sequence, n_guessed: int, n_right: int) -> None:
        shadow = self._shadows.get(seq.request.id)
        if shadow is not None:
            shadow.pace.learn(n_guessed, n_right)

    def forget(self, seq: Sequence) -> None:
        shadow = self._shadows.pop(seq.request.id, None)
        if shadow is not None:
            self._blocks.release(shadow.seq)

    def close(self) -> None:
        self._executor.close()

    def _shadow(self, seq: Sequence, limit: int) -> _Shadow | None:
        """The shadow of `seq`, with its tokens and blocks for `limit` guesses; None if there are none now."""
        if seq.request.images or len(seq.tokens) + limit > self._capacity:
            return None
        shadow = self._shadows.get(seq.request.id)
        if shadow is None:
            request = Request(seq.tokens, seq.request.params, cache_salt=seq.request.cache_salt)
            own = Sequence(request, seq.max_len, seq.stop_ids, seq.sampling, Guesser())
            shadow = self._shadows[seq.request.id] = _Shadow(own)
        self._shadows.move_to_end(seq.request.id)
        if not shadow.pace.is_due():
            return None
        self._follow(shadow, seq)
        return shadow if self._has_room(shadow.seq, len(seq.tokens) + limit) else None

    def _follow(self, shadow: _Shadow, seq: Sequence) -> None:
        """Take over the tokens that are new; of what was computed ahead, those that came true stay."""
        own, n_known = shadow.seq, len(shadow.seq.tokens)
        new = seq.tokens[n_known:]
        n_true = 0
        while n_true < min(len(shadow.ahead), len(new)) and shadow.ahead[n_true] == new[n_true]:
            n_true += 1
        own.tokens.extend(new)
        if own.n_computed == n_known:
            own.n_computed += n_true
            self._blocks.advance(own)
        del shadow.ahead[:]

    def _has_room(self, own: Sequence, n_positions: int) -> bool:
        """Give a shadow blocks for so many positions, if need be those of shadows not used for longest."""
        blocks = self._blocks
        while True:
            if not own.blocks and blocks.admit(
                own, blocks.n_needed(n_positions) - blocks.n_needed(len(own.tokens))
            ):
                continue
            n_missing = blocks.missing(own, n_positions)
            if own.blocks and n_missing <= blocks.n_free:
                blocks.grow(own, n_missing)
                return True
            others = (s.seq for s in self._shadows.values() if s.seq is not own and s.seq.blocks)
            victim = next(others, None)
            if victim is None:
                return False
            blocks.release(victim)
            victim.n_computed = 0

    def _catch_up(self, ready: list[tuple[Sequence, _Shadow, int]]) -> list[tuple[Sequence, _Shadow, int]]:
        """Compute what the shadows lack, as far as one step goes. Those that lack nothing then have a guess,
        and are returned.
        """
        chunks: list[Chunk] = []
        done: list[tuple[Sequence, _Shadow, int]] = []
        for item in ready:
            own = item[1].seq
            if not own.blocks:
                continue  # others took them
            end = min(len(own.tokens), own.n_computed + self._n_tokens_left)
            if end > own.n_computed:
                is_whole = end == len(own.tokens)
                chunks.append(
                    Chunk(own.tokens[own.n_computed : end], own.n_computed, own.blocks, int(is_whole))
                )
                self._n_tokens_left -= end - own.n_computed
                own.n_computed = end
                if is_whole:
                    done.append(item)
        if chunks:
            logits_RV = self._executor.step(Batch(chunks))
            for item in ready:
                if item[1].seq.blocks:
                    self._blocks.advance(item[1].seq)
            self._choose([seq for seq, _, _ in done], logits_RV)
        return done

    def _run(self, items: list[tuple[Sequence, _Shadow, array[int]]]) -> None:
        """Compute the last guess of each, and guess one more."""
        if not items:
            return
        chunks = []
        for _, shadow, last in items:
            own = shadow.seq
            chunks.append(Chunk(last, len(own.tokens) + len(shadow.ahead), own.blocks, 1))
            shadow.ahead.extend(last)
        self._choose([seq for seq, _, _ in items], self._executor.step(Batch(chunks)))

    def _choose(self, seqs: list[Sequence], logits_RV: NDArray[np.float32]) -> None:
        """Add to the draft of each sequence what the sampler would choose of the draft's logits."""
        for seq, logits_V in zip(seqs, logits_RV, strict=True):
            position = len(seq.tokens) + len(seq.draft)
            token = self._sampler.choose(logits_V, seq.sampling, position)
            assert token is not None  # only a mask leaves nothing
            seq.draft = seq.draft + array("i", [token])
