"""The engine: one executor, many requests, one step after the other.

Not safe for threads: whoever owns it calls submit, cancel and step in turn (bridge.py does, for
everybody). It knows token ids; text exists only in a request's sink, asked here because stop strings end
a request at once.

Shapes: R rows of the step whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import logging
import os
from array import array
from math import isfinite, isnan
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from puna.core import (
    BadFile,
    BadValue,
    Batch,
    EngineClosed,
    Executor,
    Request,
    StepResult,
    WorkFailed,
)
from puna.engine.adapters import AdapterTable
from puna.engine.blocks import BlockManager
from puna.engine.checks import check_request, check_whole
from puna.engine.config import EngineConfig
from puna.engine.masks import GrammarStats, MaskWorker
from puna.engine.pooling import Pool
from puna.engine.sampling import Sampler, SamplingState
from puna.engine.scheduler import Scheduler
from puna.engine.sequence import Sequence
from puna.engine.speculate import NO_GUESS, Guesser, PromptLookup, Proposer
from puna.engine.stats import EngineStats, snapshot
from puna.engine.transfer import Transfer

_log = logging.getLogger("puna.engine")


class Engine:
    """Runs requests on `executor`, which it closes in the end, as it does where guesses come from."""

    def __init__(
        self, executor: Executor, config: EngineConfig | None = None, proposer: Proposer | None = None
    ) -> None:
        config = config or EngineConfig()
        self._executor = executor
        self._proposer = proposer or PromptLookup()
        self.adapters = AdapterTable(executor)
        blocks = BlockManager(
            executor.n_blocks,
            executor.block_size,
            n_local_blocks=executor.n_local_blocks,
            window=executor.local_window,
            n_step=config.max_step_tokens if executor.local_window else 0,
        )
        self._scheduler = Scheduler(config, blocks, config.max_rows(executor.vocab_size), executor.max_images)
        self._counters = self._scheduler.counters
        self.transfer = Transfer(executor, self._scheduler)
        self._sampler = Sampler(executor.vocab_size)
        self._masks = MaskWorker()
        self._live: dict[int, Sequence] = {}  # by request id
        self._results: list[StepResult] = []  # not handed out yet
        self._is_closed = False
        self.capacity = min(executor.context_length, executor.n_blocks * executor.block_size)  # tokens

    @property
    def is_busy(self) -> bool:
        """Whether another step would do anything."""
        return bool(self._live or self._results)

    @property
    def grammar_stats(self) -> GrammarStats:
        """What holding answers to grammars has cost so far."""
        return self._masks.stats

    def stats(self) -> EngineStats:
        """Figures of now and since the beginning. Safe in any thread."""
        return snapshot(self._counters, self._masks.stats, **self._scheduler.figures())

    def submit(self, request: Request) -> None:
        """Queue a request; its results come out of step(). Raises what check() does."""
        self.check(request)
        params, prompt = request.params, request.prompt
        if request.id in self._live:
            raise BadValue(f"request ids must be unique, but {request.id} is still running")
        goes_on = params.ignore_end and request.grammar is None  # an answer that is whole goes on nowhere
        stop_ids = frozenset(params.stop_ids) | (frozenset() if goes_on else request.end_ids)
        max_len = max(self.capacity, len(prompt) + 1)  # the token after a full prompt is never computed
        if params.max_tokens is not None:
            max_len = min(max_len, len(prompt) + params.max_tokens)
        seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        known_stops = [i for i in stop_ids if i < self._executor.vocab_size]
        words = (token for token in prompt if token < self._executor.vocab_size)  # images have no logits
        sampling = SamplingState(params, words, known_stops, seed)
        seq = Sequence(request, max_len, stop_ids, sampling, Guesser())
        if request.pooling is not None:
            seq.pooled = Pool(request.pooling, self._executor.embedding_dim)
        self._live[request.id] = seq
        self.adapters.enter(request.adapter)
        self._scheduler.add(seq)

    def check(self, request: Request) -> None:
        """Raise what is wrong with a request: PromptTooLong, BadValue, UnknownModel (its adapter is gone) or
        EngineClosed. Safe in any thread.
        """
        check_whole(request.prompt)
        if self._is_closed:
            raise EngineClosed("the engine is closed; load the model again to go on")
        check_request(request, self._executor, self.capacity)
        self.adapters.check(request.adapter)

    def prepare_adapter(self, adapter: object) -> object:
        """What load_adapter needs of a weights.adapter.Adapter. Safe in any thread."""
        if self._is_closed:
            raise EngineClosed("the engine is closed; load the model again to go on")
        return self._executor.prepare_adapter(adapter)

    def cancel(self, request_id: int) -> None:
        """End a request between steps; its last result says so. Nothing happens if it has ended already."""
        seq = self._live.get(request_id)
        if seq is not None:
            result = self._new_result(seq)
            result.finish_reason = "cancelled"
            self._finish(seq, result)
            self._results.append(result)

    def step(self) -> list[StepResult]:
        """Run one step of whatever is due; returns what became known, per request."""
        began_at = perf_counter()
        if not self._scheduler.prompts_go_alone():
            self._guess()
        scheduled = self._scheduler.schedule()
        self._note_admission(scheduled)
        answered = [seq for seq in scheduled if seq.pooled is None]
        embedded = [seq for seq in scheduled if seq.pooled is not None]
        for part, run in ((answered, self._answer), (embedded, self._embed)):
            try:
                if part:
                    run(part)
            except Exception as error:  # the other requests, and those to come, may still be answered
                self._fail_step(part, error)
        if scheduled:
            self._counters.steps += 1
            self._counters.step_seconds += perf_counter() - began_at
        results, self._results = self._results, []
        return results

    def close(self) -> list[StepResult]:
        """Cancel what is left and close the executor; returns the last results."""
        for request_id in list(self._live):
            self.cancel(request_id)
        if not self._is_closed:
            self._is_closed = True
            self._masks.close()
            self._proposer.close()
            self._executor.close()
        results, self._results = self._results, []
        return results

    def _answer(self, scheduled: list[Sequence]) -> None:
        self._collect(scheduled, self._run(scheduled))

    def _embed(self, scheduled: list[Sequence]) -> None:
        """Pool the rows of a step; a prompt that is through has its embedding."""
        rows_RD = self._executor.embed(Batch([seq.chunk for seq in scheduled]))
        row = 0
        for seq in scheduled:
            chunk, pool = seq.chunk, seq.pooled
            assert pool is not None
            pool.add(rows_RD[row : row + chunk.n_logits])
            seq.n_scored += chunk.n_logits
            row += chunk.n_logits
            n_computed = chunk.start + len(chunk.tokens)
            self._scheduler.advance(seq, n_computed)
            if n_computed == seq.n_prompt:
                self._end_embedding(seq, pool.result())

    def _end_embedding(self, seq: Sequence, embedding_D: NDArray[np.float32]) -> None:
        result = self._new_result(seq)
        self._results.append(result)
        if not np.isfinite(embedding_D).all():
            return self._fail(seq, result)
        result.embedding, result.finish_reason = embedding_D, "stop"
        self._finish(seq, result)

    def _run(self, scheduled: list[Sequence]) -> NDArray[np.float32]:
        """The logits of a step; masks of grammars are computed meanwhile."""
        self._masks.begin(scheduled)
        try:
            return self._executor.step(Batch([seq.chunk for seq in scheduled]))
        finally:
            self._masks.wait()

    def _note_admission(self, scheduled: list[Sequence]) -> None:
        for seq in scheduled:
            if seq.admitted_at is None:
                seq.admitted_at = perf_counter()

    def _fail_step(self, scheduled: list[Sequence], error: Exception) -> None:
        """End the requests of a step that did not succeed. Nothing it wrote to the cache is kept."""
        self._counters.failed_steps += 1
        for seq in scheduled:
            if self._live.get(seq.request.id) is seq:
                result = self._new_result(seq)
                result.error = WorkFailed(
                    f"the step that computed this answer failed ({type(error).__name__}: {error}); ask again"
                )
                result.error.__cause__ = error
                self._finish(seq, result)
                self._results.append(result)

    def _guess(self) -> None:
        """Give the decoding sequences guesses, if they are so few that the step has time for it."""
        running, max_guesses = self._scheduler.running, self._scheduler.max_guesses
        if not running or len(running) > max_guesses:
            return
        asked: list[tuple[Sequence, int]] = []
        for seq in running:
            if seq.n_due == 1 and seq.pooled is None:
                limit = min(max_guesses // len(running), seq.max_len - len(seq.tokens) - 1)
                if limit and not self._is_forced(seq, limit):
                    asked.append((seq, limit))
        try:
            self._proposer.propose(asked)
        except Exception as error:  # a draft that fails must not cost an answer
            self._do_without(error, asked)
        for seq, _ in asked:
            grammar = seq.request.grammar
            if grammar is not None and seq.draft:
                seq.draft = seq.draft[: grammar.n_possible(seq.draft)]

    def _do_without(self, error: Exception, asked: list[tuple[Sequence, int]]) -> None:
        """What made guesses has failed; from now on they come from the text alone."""
        _log.error("the draft model failed and is not used any more", exc_info=error)
        self._proposer.close()
        self._proposer = PromptLookup()
        for seq, _ in asked:
            seq.draft = NO_GUESS

    def _is_forced(self, seq: Sequence, limit: int) -> bool:
        """Text that the grammar forces costs no steps of its own: it makes the best guesses."""
        grammar = seq.request.grammar
        forced = array("i", grammar.forced()[:limit]) if grammar is not None else NO_GUESS
        seq.draft = forced[: grammar.n_possible(forced)] if grammar is not None and forced else NO_GUESS
        seq.is_forced = bool(forced)
        return seq.is_forced

    def _collect(self, scheduled: list[Sequence], logits_RV: NDArray[np.float32]) -> None:
        """Turn the logits of a step into tokens and results."""
        best_R: list[int] | None = None
        if all(_is_plain(seq) for seq in scheduled):
            best_R = logits_RV.argmax(axis=1).tolist()
        row = 0
        for seq in scheduled:
            chunk = seq.chunk
            end = row + chunk.n_logits
            if end == row:
                self._scheduler.advance(seq, chunk.start + len(chunk.tokens))
            else:
                self._use(seq, logits_RV[row:end], best_R[row:end] if best_R else None)
            row = end

    def _use(self, seq: Sequence, logits_RV: NDArray[np.float32], best_R: list[int] | None) -> None:
        """Use the rows of one sequence: to score its prompt, and to extend it where they reach its end."""
        result = self._new_result(seq)
        self._results.append(result)
        if seq.n_to_score:
            self._score(seq, logits_RV, result)
            if result.error is not None:
                return
        n_computed = seq.chunk.start + len(seq.chunk.tokens)
        if n_computed < len(seq.tokens):
            self._scheduler.advance(seq, n_computed)
        else:
            self._extend(seq, logits_RV[-1 - len(seq.draft) :], best_R, result)

    def _score(self, seq: Sequence, logits_RV: NDArray[np.float32], result: StepResult) -> None:
        """Report the log-probabilities of the prompt tokens that follow the rows."""
        position = seq.chunk.start + len(seq.chunk.tokens) - len(logits_RV)
        n_top = seq.request.params.logprobs or 0
        for logits_V, token in zip(logits_RV, seq.request.prompt[position + 1 :], strict=False):
            scored = self._sampler.logprob(logits_V, token, n_top)
            if isnan(scored.logprob):
                return self._fail(seq, result)
            result.prompt_logprobs.append(scored)
        seq.n_scored += len(result.prompt_logprobs)

    def _extend(
        self, seq: Sequence, logits_RV: NDArray[np.float32], best_R: list[int] | None, result: StepResult
    ) -> None:
        """Choose the next token, and one more after every guess that was right.

        The row after a wrong guess answers a question nobody asked; its slots are written again later.
        """
        draft, n_known, n_right = seq.draft, len(seq.tokens), 0
        masks = self._masks.of(seq)
        while True:
            logits_V = logits_RV[n_right]
            token = (
                best_R[n_right]
                if best_R is not None
                else self._sampler.choose(
                    logits_V, seq.sampling, len(seq.tokens), None if masks is None else masks[n_right]
                )
            )
            if token is None:
                self._end_of_grammar(seq, result)
                return self._finish(seq, result)
            if not isfinite(logits_V[token]):
                return self._fail(seq, result)
            self._append(seq, token, logits_V, result)
            if result.finish_reason is not None or n_right == len(draft) or token != draft[n_right]:
                break
            n_right += 1
        if draft and not seq.is_forced:
            self._proposer.learn(seq, len(draft), n_right)
        self._counters.proposed_tokens += len(draft)
        self._counters.accepted_tokens += n_right
        seq.draft = NO_GUESS
        self._scheduler.advance(seq, n_known + n_right)
        if result.finish_reason is not None:
            self._finish(seq, result)

    def _append(self, seq: Sequence, token: int, logits_V: NDArray[np.float32], result: StepResult) -> None:
        """Add a chosen token to a sequence and to its result, and see whether it is the last one."""
        params, sink = seq.request.params, seq.request.sink
        seq.tokens.append(token)
        self._counters.generated_tokens += 1
        if seq.sampling.is_adjusted:
            seq.sampling.note(token)
        if token in seq.stop_ids and len(seq.tokens) - seq.n_prompt > params.min_tokens:
            result.finish_reason, result.stop = "stop", token
            return
        result.token_ids.append(token)
        if params.logprobs is not None:
            ids = params.logprob_ids
            result.logprobs.append(self._sampler.logprob(logits_V, token, params.logprobs, ids))
        if sink is not None:
            result.text += sink.push(token)
            if sink.stopped is not None:
                result.finish_reason, result.stop = "stop", sink.stopped
                return
        grammar = seq.request.grammar
        if grammar is not None:
            grammar.accept(token)
            if grammar.is_complete:
                result.finish_reason = "stop"
                return
        if len(seq.tokens) == seq.max_len:
            result.finish_reason = "length"

    def _new_result(self, seq: Sequence) -> StepResult:
        return StepResult(seq.request.id, [], "", seq.n_cached or 0, [], [], admitted_at=seq.admitted_at)

    def _fail(self, seq: Sequence, result: StepResult) -> None:
        """The model computes no numbers for this sequence; others may still be answered."""
        result.error = BadFile(
            f"the model's logits after {len(seq.tokens)} tokens are infinite or not a number (NaN): its "
            "weights are damaged, or too large for their type; get the model again, or load it with other "
            "weights"
        )
        self._finish(seq, result)

    def _end_of_grammar(self, seq: Sequence, result: StepResult) -> None:
        """No token is left that could be next: the answer is whole, if shorter than asked for, or stuck."""
        grammar = seq.request.grammar
        assert grammar is not None
        if grammar.may_end and not grammar.problem:
            result.finish_reason = "stop"
            return
        n = len(seq.tokens) - seq.n_prompt
        why = grammar.problem or "no token of the vocabulary fits"
        result.error = BadValue(
            f"the grammar must allow some token at every place, but after {n} tokens of the answer there is "
            f"none: {why}; simplify the grammar"
        )

    def _finish(self, seq: Sequence, result: StepResult) -> None:
        sink = seq.request.sink
        if sink is not None and sink.stopped is None:
            result.text += sink.flush()
        del self._live[seq.request.id]
        self._scheduler.remove(seq)
        self._proposer.forget(seq)
        self.adapters.leave(seq.request.adapter)


def _is_plain(seq: Sequence) -> bool:
    """Whether the largest logit is all that is wanted."""
    return seq.sampling.is_plain and not seq.n_to_score and seq.request.grammar is None
