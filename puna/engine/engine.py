"""The engine: one executor, many requests, one step after the other.

Not safe for threads: whoever owns it calls submit, cancel and step in turn (bridge.py does, for
everybody). It knows token ids; text exists only in a request's sink, asked here because stop strings end
a request at once.

Shapes: R rows of the step whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from math import isfinite, isnan
from operator import index
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from puna.core import (
    BadFile,
    BadValue,
    Batch,
    Completion,
    EngineClosed,
    Executor,
    PromptTooLong,
    Request,
    StepResult,
    TokenLogprob,
    WorkFailed,
)
from puna.engine.adapters import AdapterTable
from puna.engine.blocks import BlockManager
from puna.engine.config import EngineConfig
from puna.engine.masks import GrammarStats, MaskWorker
from puna.engine.sampling import Sampler, SamplingState
from puna.engine.scheduler import Scheduler
from puna.engine.sequence import Sequence
from puna.engine.speculate import NO_GUESS, Guesser


class Engine:
    """Runs requests on `executor`, which it closes in the end."""

    def __init__(self, executor: Executor, config: EngineConfig | None = None) -> None:
        config = config or EngineConfig()
        self._executor = executor
        self.adapters = AdapterTable(executor)
        blocks = BlockManager(
            executor.n_blocks,
            executor.block_size,
            n_local_blocks=executor.n_local_blocks,
            window=executor.local_window,
            n_step=config.max_step_tokens if executor.local_window else 0,
        )
        self._scheduler = Scheduler(config, blocks, config.max_rows(executor.vocab_size), executor.max_images)
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
        self._live[request.id] = seq
        self.adapters.enter(request.adapter)
        self._scheduler.add(seq)

    def check(self, request: Request) -> None:
        """Raise what is wrong with a request: PromptTooLong, BadValue or EngineClosed. Safe in any thread."""
        n_prompt, n_vocab, params = len(request.prompt), self._executor.vocab_size, request.params
        _check_whole(request.prompt)
        if self._is_closed:
            raise EngineClosed("the engine is closed; load the model again to go on")
        if n_prompt > self.capacity:
            raise PromptTooLong(
                f"the prompt has {n_prompt} tokens, but the context holds {self.capacity}; "
                "shorten the prompt, or load the model with a larger context"
            )
        if not n_prompt:
            raise BadValue("the prompt must have at least one token, got none")
        named_ids = {
            "prompt": (request.prompt, self._executor.n_token_ids),
            "logit_bias": (params.logit_bias, n_vocab),
            "stop_ids": (params.stop_ids, n_vocab),
        }
        for name, (ids, n_ids) in named_ids.items():
            if ids and not 0 <= min(ids) <= max(ids) < n_ids:
                found = f"{min(ids)} to {max(ids)}"
                raise BadValue(f"{name} must be token ids from 0 to {n_ids - 1}, got {found}")
        self._check_images(request)
        self.adapters.check(request.adapter)
        if params.stop and request.sink is None:
            raise BadValue("stop strings need a request with a text sink, got none; use stop_ids or give one")

    def _check_images(self, request: Request) -> None:
        last = -1
        for placed in request.images:
            expected, positions = self._executor.n_image_positions(placed.image), placed.positions
            if len(positions) != expected:
                raise BadValue(f"this image takes {expected} positions of the prompt, got {len(positions)}")
            for position in positions:
                if not isinstance(position, int):
                    raise BadValue(f"positions of images must be whole numbers, got {position!r} among them")
                if not last < position < len(request.prompt):
                    raise BadValue(
                        f"positions of images must rise and lie within the prompt of {len(request.prompt)} "
                        f"tokens, got {position} after {last}"
                    )
                last = position

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
        self._guess()
        scheduled = self._scheduler.schedule()
        if scheduled:
            self._note_admission(scheduled)
            try:
                logits_RV = self._run(scheduled)
                self._collect(scheduled, logits_RV)
            except Exception as error:  # the other requests, and those to come, may still be answered
                self._fail_step(scheduled, error)
        results, self._results = self._results, []
        return results

    def close(self) -> list[StepResult]:
        """Cancel what is left and close the executor; returns the last results."""
        for request_id in list(self._live):
            self.cancel(request_id)
        if not self._is_closed:
            self._is_closed = True
            self._masks.close()
            self._executor.close()
        results, self._results = self._results, []
        return results

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
        for seq in running:
            if len(seq.tokens) - seq.n_computed == 1:
                limit = min(max_guesses // len(running), seq.max_len - len(seq.tokens) - 1)
                if limit:
                    self._guess_for(seq, limit)

    def _guess_for(self, seq: Sequence, limit: int) -> None:
        """Text that the grammar forces costs no steps of its own: it makes the best guesses."""
        grammar = seq.request.grammar
        if grammar is None:
            seq.draft = seq.guesser.guess(seq.tokens, limit)
            return
        forced = array("i", grammar.forced()[:limit])
        seq.is_forced = bool(forced)
        draft = forced or seq.guesser.guess(seq.tokens, limit)
        seq.draft = draft[: grammar.n_possible(draft)] if draft else NO_GUESS

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
            seq.guesser.learn(len(draft), n_right)
        seq.draft = NO_GUESS
        self._scheduler.advance(seq, n_known + n_right)
        if result.finish_reason is not None:
            self._finish(seq, result)

    def _append(self, seq: Sequence, token: int, logits_V: NDArray[np.float32], result: StepResult) -> None:
        """Add a chosen token to a sequence and to its result, and see whether it is the last one."""
        params, sink = seq.request.params, seq.request.sink
        seq.tokens.append(token)
        if seq.sampling.is_adjusted:
            seq.sampling.note(token)
        if token in seq.stop_ids and len(seq.tokens) - seq.n_prompt > params.min_tokens:
            result.finish_reason, result.stop = "stop", token
            return
        result.token_ids.append(token)
        if params.logprobs is not None:
            result.logprobs.append(self._sampler.logprob(logits_V, token, params.logprobs))
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
        self.adapters.leave(seq.request.adapter)


def completion(request: Request, results: Iterable[StepResult]) -> Completion:
    """The whole answer from all results of a request, which has ended. Raises the error that ended it."""
    results = list(results)
    last = results[-1]
    if last.error is not None:
        raise last.error
    assert last.finish_reason is not None
    logprobs: list[TokenLogprob] = [item for result in results for item in result.logprobs]
    prompt_logprobs = [item for result in results for item in result.prompt_logprobs]
    return Completion(
        text="".join(result.text for result in results),
        token_ids=tuple(token for result in results for token in result.token_ids),
        finish_reason=last.finish_reason,
        stop=last.stop,
        n_prompt=len(request.prompt),
        n_cached=last.n_cached,
        logprobs=None if request.params.logprobs is None else tuple(logprobs),
        prompt_logprobs=tuple(prompt_logprobs) if request.prompt_logprobs else None,
    )


def _is_plain(seq: Sequence) -> bool:
    """Whether the largest logit is all that is wanted."""
    return seq.sampling.is_plain and not seq.n_to_score and seq.request.grammar is None


def _check_whole(ids: Iterable[int]) -> None:
    """One token id that is none would stop the engine for everybody."""
    for i in ids:
        try:
            index(i)
        except TypeError:
            raise BadValue(f"a prompt must be a text or a list of token ids, got {i!r} among them") from None
