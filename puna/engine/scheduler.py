"""Scheduler: which sequences run in the next step, and how much of each.

Continuous batching with chunked prefill: every running sequence that decodes gets its token; what is left of
the step's token budget goes to prefill, of running sequences and of waiting ones, which are let in as long
as blocks for their whole prompt are free. Whose turn it is says fair_queue.py, and shares.py who gives up
its blocks where there are too few: that one is computed again later. Where a crowd decodes, most of a step
is its attention: prompts that need one step only get it to themselves, every second one at most, and so
their first tokens sooner.

Why nothing starves or deadlocks: all requests stand in an order that never changes (their rank), the running
one that is first in it keeps its blocks, and every eighth turn goes to the first; the engine has refused
what would not fit even alone. With one tenant and one priority this is the order of arrival. Only integers;
no tensor, no clock.
"""

from __future__ import annotations

from bisect import insort

from puna.engine.blocks import BlockManager
from puna.engine.config import EngineConfig
from puna.engine.fair_queue import FairQueue, Rank
from puna.engine.sequence import Sequence
from puna.engine.shares import Lack, victims, weakest
from puna.engine.stats import Counters


class Scheduler:
    """Decides over one executor's steps; `max_rows` is the number of logits rows that a step may ask for.

    Every running sequence has a token and a row of each step to itself. Guesses and prefill share what is
    left of the tokens, guesses and scoring what is left of the rows.
    """

    def __init__(
        self, config: EngineConfig, blocks: BlockManager, max_rows: int, max_images: int | None = None
    ) -> None:
        n_tokens = config.max_step_tokens
        # half of the tokens and rows is kept from decoding, and half of that from guesses, so that
        # prefill and scoring always move on
        self._max_running = max(1, min(config.max_running, n_tokens // 2, max_rows // 2))
        self._max_tokens = n_tokens
        self._n_spare_rows = max_rows - self._max_running
        self.max_guesses = min(
            config.max_guesses, self._n_spare_rows // 2, (n_tokens - self._max_running) // 2
        )
        self._max_images = max_images
        self.blocks = blocks
        self.counters = Counters()
        self.running: list[Sequence] = []  # by rank
        self.queue = FairQueue(config.ageing_steps)
        self._futile: dict[tuple[Sequence, bool], Lack] = {}  # did not fit, and nothing has ended since
        self._patience = config.ageing_steps
        self._crowd = config.crowd
        self._were_alone = False  # prompts had the last step to themselves
        self._kept_for: tuple[Sequence | None, int] = None, 0  # who did not fit in its turn, since which step
        self._scheduled: list[Sequence] = []  # of the step being scheduled
        self._n_tokens_left = n_tokens  # likewise
        self._n_rows_left = 0  # likewise, of the spare rows

    def add(self, seq: Sequence) -> None:
        self.queue.arrive(seq)

    def remove(self, seq: Sequence) -> None:
        """`seq` is finished or cancelled; between steps only."""
        self._futile.clear()
        if seq.blocks:
            self.running.remove(seq)
            self.blocks.release(seq)
        else:
            self.queue.stop_waiting(seq)
        self.queue.leave(seq)

    def try_again(self) -> None:
        """Blocks were let go by something that is no sequence."""
        self._futile.clear()

    def prompts_go_alone(self) -> bool:
        """Whether the next step should be for prompts only, and nothing decode in it."""
        running, n_crowd = self.running, self._crowd
        if self._were_alone or len(running) < n_crowd or len(self.queue) > len(running):
            return False
        prompts = [seq for seq in running if seq.n_due > 1]
        if len(running) - len(prompts) < n_crowd:
            return False
        prompts += self.queue.in_order()
        if any(seq.n_to_score for seq in prompts):
            return False  # rows may end its step before its tokens do
        return 0 < sum(seq.n_due for seq in prompts) <= self._max_tokens

    def schedule(self) -> list[Sequence]:
        """The sequences of the next step, their chunks filled in; empty only if there is nothing to do, or
        blocks are held by something else."""
        self.queue.tick()
        self._n_tokens_left = self._max_tokens
        self._n_rows_left = self._n_spare_rows
        self._scheduled = []
        self._let_first_go_on()
        self._were_alone = self.prompts_go_alone()
        if self._were_alone:
            self._prefill_in_turn(may_admit=True)
        if not self._scheduled:
            n_preemptions = self.counters.preemptions
            self._decode()
            # after a preemption blocks are short, and who lost them waits
            self._prefill_in_turn(may_admit=self.counters.preemptions == n_preemptions)
        assert self._scheduled or not (self.running or self.queue) or self.blocks.n_transfers
        self.counters.step_tokens += self._max_tokens - self._n_tokens_left
        self.counters.step_sequences += len(self._scheduled)
        return self._scheduled

    def advance(self, seq: Sequence, n_computed: int) -> None:
        """The step is done, and the first n_computed positions of `seq` are good."""
        seq.n_computed = n_computed
        if self.blocks.advance(seq):
            self._futile.clear()

    def figures(self) -> dict[str, int]:
        """What stats.EngineStats says of the moment. Safe in any thread."""
        return {
            "running": len(self.running),
            "waiting": len(self.queue),
            "waiting_tenants": self.queue.n_flows,
            "last_step_tokens": self._max_tokens - self._n_tokens_left,
            "last_step_sequences": len(self._scheduled),
            **self.blocks.figures(),
        }

    def _let_first_go_on(self) -> None:
        """See that the first sequence, if it prefills, has a local block for its next token.

        It gets back what it gives back at the end of a chunk of attention, unless others hold that too.
        """
        if not self.running:
            return
        first, blocks = self.running[0], self.blocks
        while (
            len(self.running) > 1 and blocks.missing_local(first, first.n_computed + 1) > blocks.n_free_local
        ):
            self._preempt(weakest(self.running))

    def _decode(self) -> None:
        """Run every sequence that lacks one token, with its guesses."""
        for seq in tuple(self.running):
            if seq.blocks and seq.n_due == 1 and self._make_room(seq):
                self._run(seq, len(seq.tokens), 1 + len(seq.draft))

    def _make_room(self, seq: Sequence) -> bool:
        """See that `seq` has blocks for its missing token, if need be those of others.

        False if it was itself the one to give them up. Guesses must not cost anybody a block, and are dropped
        otherwise.
        """
        blocks = self.blocks
        n_missing, n_local = self._missing(seq)
        if seq.draft and self._is_tight(n_missing, n_local):
            del seq.draft[:]
            n_missing, n_local = self._missing(seq)
        while n_missing > blocks.n_free or n_local > blocks.n_free_local:
            victim = weakest(self.running)
            self._preempt(victim)
            if victim is seq:
                return False
        if n_missing or n_local:
            blocks.grow(seq, n_missing, n_local)
        return True

    def _missing(self, seq: Sequence) -> tuple[int, int]:
        end = len(seq.tokens) + len(seq.draft)
        return self.blocks.missing(seq, end), self.blocks.missing_local(seq, end)

    def _is_tight(self, n_missing: int, n_local: int) -> bool:
        """Whether taking so many blocks would leave a running sequence without one to grow into."""
        blocks, n = self.blocks, len(self.running)
        return bool(
            (n_missing and blocks.n_free - n_missing < n) or (n_local and blocks.n_free_local - n_local < n)
        )

    def _preempt(self, victim: Sequence) -> None:
        """Take the blocks of `victim`, which waits again; it may have been scheduled already."""
        if victim in self._scheduled:
            self._scheduled.remove(victim)
            chunk = victim.chunk
            victim.flow.counter -= len(chunk.tokens)
            self._n_tokens_left += len(chunk.tokens)
            self._n_rows_left += max(0, chunk.n_logits - 1)
        self.running.remove(victim)
        self.blocks.release(victim)
        self.counters.preemptions += 1
        del victim.draft[:]
        self.queue.wait(victim)
        self._futile.clear()

    def _prefill_in_turn(self, may_admit: bool) -> None:
        """Give what is left of the step to running sequences that prefill, and to those that wait."""
        todo = [seq for seq in self.running if seq.n_due > 1]
        while self._n_tokens_left:
            seq = self.queue.next_of(todo, with_waiting=may_admit)
            if seq is None:
                return
            if seq.blocks:
                todo.remove(seq)
                self.queue.took_turn(seq, counts=may_admit)
                self._prefill(seq)
                continue
            admitted = self._admit_one(seq)
            todo = [other for other in todo if other.blocks]
            if admitted is None:
                may_admit = False
            else:
                self.queue.took_turn(admitted, counts=admitted is seq)
                self._prefill(admitted)

    def _prefill(self, seq: Sequence) -> None:
        """Run as many of the missing tokens of `seq` as this step and the free local blocks have room for."""
        end = min(len(seq.tokens), seq.n_computed + self._n_tokens_left)
        end -= self._n_without_local(seq, end)
        n_logits = int(end == len(seq.tokens))
        if seq.n_to_score:
            first = max(seq.n_computed, seq.n_scored)  # earlier ones were scored before a preemption
            end = min(end, first + 1 + self._n_rows_left)
            n_logits = max(0, end - first)
        if end > seq.n_computed:
            self.counters.prefill_tokens += end - seq.n_computed
            self.blocks.grow(seq, 0, self.blocks.missing_local(seq, end))
            self._run(seq, end, n_logits)

    def _n_without_local(self, seq: Sequence, end: int) -> int:
        """How many of the positions before `end` no local block is free for."""
        blocks = self.blocks
        n_short = blocks.missing_local(seq, end) - blocks.n_free_local
        if n_short <= 0:
            return 0
        size = blocks.block_size
        return end - max(seq.n_computed, (-(-end // size) - n_short) * size)

    def _admit_one(self, seq: Sequence) -> Sequence | None:
        """Let in `seq`, whose turn it is, or else the first in turn.

        Where `seq` has been first in rank without fitting for long, what is free is kept for it.
        """
        if self._admit(seq):
            return seq
        if self._kept_for[0] is not seq:
            self._kept_for = seq, self.queue.step
        other = self.queue.first_in_turn()
        taking = self.queue.step - self._kept_for[1] >= self._patience
        return other if other is not None and other is not seq and self._admit(other, taking=taking) else None

    def _admit(self, seq: Sequence, *, taking: bool = False) -> bool:
        """Let `seq` in, leaving every running one a free block to grow into; if need be, others have to go.

        With `taking` it gets what those had, because what is free is kept for somebody else.
        """
        lack = self._futile.get((seq, taking))
        if lack is not None and not (lack and victims(seq, self.running, self.blocks, lack)):
            return False  # it may lack more by now, but not less
        while taking or not self._has_place(seq) or not self.blocks.admit(seq, len(self.running)):
            lack = self._lack(seq, taking)
            leaving = victims(seq, self.running, self.blocks, lack)
            for victim in leaving:
                self._preempt(victim)
            if not leaving:
                self._futile[seq, taking] = lack
                return False
            taking = False
        self.queue.stop_waiting(seq)
        if seq.n_cached is None:
            seq.n_cached = seq.n_computed
            self.counters.prefix_queries += seq.n_prompt
            self.counters.prefix_hits += seq.n_cached
        insort(self.running, seq, key=_rank)
        return True

    def _has_place(self, seq: Sequence) -> bool:
        """Whether one more may run, and the images of `seq` have room beside those of running ones."""
        if len(self.running) >= self._max_running:
            return False
        if self._max_images is not None and seq.images:
            seen = {placed.image.digest for other in self.running for placed in other.images}
            own = {placed.image.digest for placed in seq.images}
            return not seen or len(seen | own) <= self._max_images
        return True

    def _lack(self, seq: Sequence, taking: bool) -> Lack:
        """What has to be taken from others for `seq`; room for images never is."""
        n = len(self.running)
        if taking:
            return Lack(1, *self.blocks.lacking(seq, 1, with_free=False))
        return Lack(n + 1 - self._max_running, *self.blocks.lacking(seq, n))

    def _run(self, seq: Sequence, end: int, n_logits: int) -> None:
        """Put tokens n_computed..end-1 of `seq` and its guesses into the step."""
        chunk = seq.chunk
        chunk.start = seq.n_computed
        chunk.tokens = tokens = seq.tokens[seq.n_computed : end] + seq.draft
        chunk.n_logits = n_logits
        self._n_tokens_left -= len(tokens)
        self._n_rows_left -= max(0, n_logits - 1)
        seq.flow.counter += len(tokens)
        self._scheduled.append(seq)


def _rank(seq: Sequence) -> Rank:
    return seq.rank
