"""Scheduler: which sequences run in the next step, and how much of each.

Continuous batching with chunked prefill: every running sequence that decodes gets its token, what is left
of the step's token budget goes to prefill in order of arrival, then waiting requests are admitted in
order of arrival as long as blocks for their whole prompt are free. When a decoding sequence finds no free
block, the newest running one gives up its blocks and is computed again later, in front of the queue.

Why nothing starves or deadlocks: both lists stay in order of arrival, and the oldest running sequence is
the last to be preempted; the engine has refused what would not fit even alone. Only integers; no tensor,
no clock.
"""

from __future__ import annotations

from collections import deque

from puna.engine.blocks import BlockManager
from puna.engine.config import EngineConfig
from puna.engine.sequence import Sequence
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
        self.running: list[Sequence] = []  # oldest first
        self.waiting: deque[Sequence] = deque()  # oldest first, all younger than the running ones
        self._admission_is_futile = False  # the first waiting one did not fit, and nothing has ended since
        self._n_tokens_left = self._max_tokens  # of the step being scheduled
        self._n_scheduled = 0  # sequences of the last step
        self._n_rows_left = 0  # likewise, of the spare rows

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def figures(self) -> dict[str, int]:
        """What stats.EngineStats says of the moment. Safe in any thread."""
        return {
            "running": len(self.running),
            "waiting": len(self.waiting),
            "waiting_tenants": len({seq.request.tenant for seq in tuple(self.waiting)}),
            "last_step_tokens": self._max_tokens - self._n_tokens_left,
            "last_step_sequences": self._n_scheduled,
            **self.blocks.figures(),
        }

    def remove(self, seq: Sequence) -> None:
        """`seq` is finished or cancelled; between steps only."""
        self._admission_is_futile = False
        if seq.blocks:
            self.running.remove(seq)
            self.blocks.release(seq)
        else:
            self.waiting.remove(seq)

    def schedule(self) -> list[Sequence]:
        """The sequences of the next step, their chunks filled in; empty only if there is nothing to do."""
        self._n_tokens_left = self._max_tokens
        self._n_rows_left = self._n_spare_rows
        scheduled: list[Sequence] = []
        n_running = len(self.running)
        self._let_oldest_go_on()
        self._decode(scheduled)
        for seq in self.running:
            if len(seq.tokens) - seq.n_computed > 1:
                self._prefill(seq, scheduled)
        if self.waiting and len(self.running) == n_running:  # else blocks are short: the preempted one waits
            self._admit(scheduled)
        assert scheduled or not (self.running or self.waiting)
        self._count(scheduled)
        return scheduled

    def _count(self, scheduled: list[Sequence]) -> None:
        n_tokens = self._max_tokens - self._n_tokens_left
        self._n_scheduled = len(scheduled)
        self.counters.step_tokens += n_tokens
        self.counters.step_sequences += len(scheduled)

    def advance(self, seq: Sequence, n_computed: int) -> None:
        """The step is done, and the first n_computed positions of `seq` are good."""
        seq.n_computed = n_computed
        if self.blocks.advance(seq):
            self._admission_is_futile = False

    def _let_oldest_go_on(self) -> None:
        """See that the oldest sequence, if it prefills, has a local block for its next token.

        It gets back what it gives back at the end of a chunk of attention, unless others hold that too.
        """
        if not self.running:
            return
        oldest, blocks = self.running[0], self.blocks
        while (
            len(self.running) > 1
            and blocks.missing_local(oldest, oldest.n_computed + 1) > blocks.n_free_local
        ):
            self._preempt(self.running.pop())

    def _decode(self, scheduled: list[Sequence]) -> None:
        """Run every sequence that lacks one token, with its guesses. Preemption may shorten `running`."""
        i = 0
        while i < len(self.running):
            seq = self.running[i]
            if len(seq.tokens) - seq.n_computed == 1 and self._make_room(seq):
                self._run(seq, len(seq.tokens), 1 + len(seq.draft), scheduled)
                self._n_rows_left -= len(seq.draft)
            i += 1

    def _make_room(self, seq: Sequence) -> bool:
        """See that `seq` has blocks for its missing token, if need be those of the newest running sequences.

        False if it was itself the newest. Guesses must not cost anybody a block, and are dropped otherwise.
        """
        blocks = self.blocks
        n_missing, n_local = self._missing(seq)
        if seq.draft and self._is_tight(n_missing, n_local):
            del seq.draft[:]
            n_missing, n_local = self._missing(seq)
        while n_missing > blocks.n_free or n_local > blocks.n_free_local:
            victim = self.running.pop()
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
        self.blocks.release(victim)
        self.counters.preemptions += 1
        del victim.draft[:]
        self.waiting.appendleft(victim)
        self._admission_is_futile = False

    def _prefill(self, seq: Sequence, scheduled: list[Sequence]) -> None:
        """Run as many of the missing tokens of `seq` as this step and the free local blocks have room for."""
        end = min(len(seq.tokens), seq.n_computed + self._n_tokens_left)
        end -= self._n_without_local(seq, end)
        n_logits = int(end == len(seq.tokens))
        if seq.n_to_score:
            first = max(seq.n_computed, seq.n_scored)  # earlier ones were scored before a preemption
            end = min(end, first + 1 + self._n_rows_left)
            n_logits = max(0, end - first)
            self._n_rows_left -= max(0, n_logits - 1)
        if end > seq.n_computed:
            self.counters.prefill_tokens += end - seq.n_computed
            self.blocks.grow(seq, 0, self.blocks.missing_local(seq, end))
            self._run(seq, end, n_logits, scheduled)

    def _n_without_local(self, seq: Sequence, end: int) -> int:
        """How many of the positions before `end` no local block is free for."""
        blocks = self.blocks
        n_short = blocks.missing_local(seq, end) - blocks.n_free_local
        if n_short <= 0:
            return 0
        size = blocks.block_size
        return end - max(seq.n_computed, (-(-end // size) - n_short) * size)

    def _admit(self, scheduled: list[Sequence]) -> None:
        """Let waiting sequences in, leaving every running one a free block to grow into."""
        while self.waiting and self._n_tokens_left and len(self.running) < self._max_running:
            seq = self.waiting[0]
            if self._admission_is_futile or not self._admits(seq):
                self._admission_is_futile = True
                return
            if seq.n_cached is None:
                seq.n_cached = seq.n_computed
                self.counters.prefix_queries += seq.n_prompt
                self.counters.prefix_hits += seq.n_cached
            self.running.append(self.waiting.popleft())
            self._prefill(seq, scheduled)

    def _admits(self, seq: Sequence) -> bool:
        """Give `seq` its blocks, if they are there and its images have room beside those of running ones."""
        if self._max_images is not None and seq.request.images:
            seen = {placed.image.digest for other in self.running for placed in other.request.images}
            own = {placed.image.digest for placed in seq.request.images}
            if seen and len(seen | own) > self._max_images:
                return False
        return self.blocks.admit(seq, len(self.running))

    def _run(self, seq: Sequence, end: int, n_logits: int, scheduled: list[Sequence]) -> None:
        """Put tokens n_computed..end-1 of `seq` and its guesses into the step."""
        chunk = seq.chunk
        chunk.start = seq.n_computed
        chunk.tokens = tokens = seq.tokens[seq.n_computed : end] + seq.draft
        chunk.n_logits = n_logits
        self._n_tokens_left -= len(tokens)
        scheduled.append(seq)
