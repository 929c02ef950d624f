from __future__ import annotations

import dataclasses
from array import array

import numpy as np
import pytest
from numpy.typing import NDArray

from puna.core import (
    BadFile,
    BadValue,
    Batch,
    Completion,
    EngineClosed,
    PromptTooLong,
    Request,
    SamplingParams,
    StepResult,
)
from puna.engine.completion import completion
from puna.engine.config import EngineConfig
from puna.engine.engine import Engine
from puna.engine.mock import MockExecutor

GREEDY = SamplingParams(temperature=0, max_tokens=8)


class Recorder(MockExecutor):
    """Keeps what each step ran: per chunk its start, its number of tokens, and its number of rows."""

    def __init__(self, n_blocks: int = 64, context_length: int = 256, block_size: int = 4) -> None:
        super().__init__(26, context_length, n_blocks, block_size)
        self.steps: list[list[tuple[int, int, int]]] = []

    def step(self, batch: Batch) -> NDArray[np.float32]:
        self.steps.append([(chunk.start, len(chunk.tokens), chunk.n_logits) for chunk in batch.chunks])
        return super().step(batch)


class Cycle(Recorder):
    """A model that repeats five tokens for ever."""

    def step(self, batch: Batch) -> NDArray[np.float32]:
        super().step(batch)
        last = [
            token for chunk in batch.chunks for token in chunk.tokens[len(chunk.tokens) - chunk.n_logits :]
        ]
        return np.eye(26, dtype=np.float32)[[(token + 1) % 5 for token in last]]


class Letters:
    """A text sink: id 0 is a, id 1 is b. Holds back one letter, so that there is something to flush."""

    def __init__(self, stop: str | None = None) -> None:
        self.stopped: str | None = None
        self._stop = stop
        self._text = ""
        self._n_given = 0

    def push(self, token_id: int, /) -> str:
        self._text += chr(ord("a") + token_id)
        if self._stop and self._stop in self._text:
            self.stopped = self._stop
            self._text = self._text[: self._text.index(self._stop)]
            return self.flush()
        return self._give(len(self._text) - 1)

    def flush(self) -> str:
        return self._give(len(self._text))

    def _give(self, end: int) -> str:
        text, self._n_given = self._text[self._n_given : end], max(end, self._n_given)
        return text


def run(engine: Engine, *requests: Request) -> list[Completion]:
    results: dict[int, list[StepResult]] = {}
    for request in requests:
        engine.submit(request)
        results[request.id] = []
    while engine.is_busy:
        for result in engine.step():
            results[result.request_id].append(result)
    return [completion(request, results[request.id]) for request in requests]


def with_options(**options: object) -> SamplingParams:
    return dataclasses.replace(GREEDY, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Request([1] * 41, GREEDY), PromptTooLong, "41 tokens, but the context holds 40"),
        (Request([], GREEDY), BadValue, "at least one token"),
        (Request([1, 26], GREEDY), BadValue, "prompt must be token ids from 0 to 25, got 1 to 26"),
        (Request([-1], GREEDY), BadValue, "prompt must be token ids"),
        (Request([1], with_options(logit_bias={99: 1.0})), BadValue, "logit_bias must be token ids"),
        (Request([1], with_options(stop_ids=(99,))), BadValue, "stop_ids must be token ids"),
        (Request([1], with_options(stop=("x",))), BadValue, "stop strings need"),
        (Request([1], GREEDY, priority=1001), BadValue, "priority must be a whole number from -1000 to 1000"),
        (Request([1], GREEDY, priority=0.5), BadValue, "priority must be"),  # type: ignore[arg-type]
    ],
)
def test_refuses_what_cannot_run(request_: Request, error: type[Exception], words: str) -> None:
    engine = Engine(Recorder(n_blocks=10))
    with pytest.raises(error, match=words):
        engine.submit(request_)
    assert not engine.is_busy
    assert not engine.step()


def test_refuses_an_id_in_use_and_everything_once_closed() -> None:
    executor = Recorder()
    engine = Engine(executor)
    engine.submit(Request([1, 2], GREEDY, id=5))
    with pytest.raises(BadValue, match="5 is still running"):
        engine.submit(Request([1, 2], GREEDY, id=5))
    assert [(result.request_id, result.finish_reason) for result in engine.close()] == [(5, "cancelled")]
    assert executor.is_closed
    assert engine.close() == []
    with pytest.raises(EngineClosed, match="load the model again"):
        engine.submit(Request([1, 2], GREEDY))


def test_answers_until_the_context_is_full() -> None:
    params = with_options(max_tokens=None)
    for n_prompt, n_answer in [(1, 39), (38, 2), (39, 1), (40, 1)]:
        (done,) = run(Engine(Recorder(n_blocks=10)), Request([3] * n_prompt, params))
        assert (len(done.token_ids), done.finish_reason) == (n_answer, "length")
        assert done.n_prompt == n_prompt
    (done,) = run(Engine(Recorder(context_length=11)), Request([3] * 5, params))
    assert len(done.token_ids) == 6


def test_stops_at_ids() -> None:
    def finish(params: SamplingParams) -> tuple[tuple[int, ...], str, str | int | None]:
        (done,) = run(Engine(Cycle()), Request([0], params, end_ids=frozenset({4, 1000})))
        return done.token_ids, done.finish_reason, done.stop

    assert finish(GREEDY) == ((1, 2, 3), "stop", 4)
    assert finish(with_options(stop_ids=(2,))) == ((1,), "stop", 2)
    assert finish(with_options(ignore_end=True)) == ((1, 2, 3, 4, 0, 1, 2, 3), "length", None)
    assert finish(with_options(ignore_end=True, stop_ids=(0,))) == ((1, 2, 3, 4), "stop", 0)
    assert finish(with_options(max_tokens=4)) == ((1, 2, 3), "stop", 4)
    assert finish(with_options(max_tokens=3)) == ((1, 2, 3), "length", None)
    # while end tokens are masked all other logits of this model are equal, and 0 wins
    assert finish(with_options(min_tokens=3)) == ((1, 2, 3), "stop", 4)
    assert finish(with_options(min_tokens=4)) == ((1, 2, 3, 0, 1, 2, 3), "stop", 4)


def test_stop_strings_end_a_request_at_once() -> None:
    engine = Engine(Cycle(), EngineConfig(max_guesses=0))
    (done,) = run(engine, Request([0], with_options(stop=("de",), max_tokens=100), sink=Letters("de")))
    assert (done.text, done.stop, done.finish_reason) == ("bc", "de", "stop")
    assert done.token_ids == (1, 2, 3, 4)


def test_text_is_whole_whatever_ends_it() -> None:
    (done,) = run(Engine(Cycle()), Request([0], with_options(max_tokens=4), sink=Letters()))
    assert done.text == "bcde"
    (done,) = run(Engine(Cycle()), Request([0], GREEDY, frozenset({3}), sink=Letters()))
    assert (done.text, done.stop) == ("bc", 3)
    engine, request = Engine(Cycle()), Request([0], GREEDY, sink=Letters())
    engine.submit(request)
    results = engine.step() + engine.step()
    engine.cancel(request.id)
    done = completion(request, results + engine.step())
    assert (done.text, done.token_ids, done.finish_reason) == ("bc", (1, 2), "cancelled")


def test_cancels_the_waiting_the_running_and_nothing_else() -> None:
    engine = Engine(Recorder(), EngineConfig(max_running=1))
    running, waiting, third = (Request([1, 2, 3], GREEDY) for _ in range(3))
    for request in (running, waiting, third):
        engine.submit(request)
    assert [result.request_id for result in engine.step()] == [running.id]
    engine.cancel(waiting.id)
    engine.cancel(waiting.id)
    engine.cancel(10**9)
    results = engine.step()
    assert {(result.request_id, result.finish_reason) for result in results} == {
        (running.id, None),
        (waiting.id, "cancelled"),
    }
    engine.cancel(running.id)
    assert {result.request_id for result in engine.step()} == {running.id, third.id}


def test_later_turns_find_earlier_ones_in_the_cache() -> None:
    executor = Recorder()
    engine = Engine(executor)
    prompt = list(range(10))
    (first,) = run(engine, Request(prompt, GREEDY))
    assert first.n_cached == 0
    executor.steps.clear()
    second_prompt = [*prompt, *first.token_ids, 20, 21]
    (second,) = run(engine, Request(second_prompt, GREEDY))
    assert second.n_cached == 16  # of 20: 17 tokens were computed, of which 4 blocks are full
    assert executor.steps[0] == [(16, 4, 1)]
    (again,) = run(Engine(Recorder()), Request(second_prompt, GREEDY))
    assert again.token_ids == second.token_ids


def test_prefill_is_cut_to_the_budget_and_decoding_goes_first() -> None:
    executor = Recorder()
    engine = Engine(executor, EngineConfig(max_step_tokens=8, max_guesses=0))
    engine.submit(Request([1, 2], with_options(max_tokens=50)))
    engine.step()
    engine.submit(Request(list(range(20)), GREEDY))
    engine.submit(Request([5] * 6, GREEDY))
    for _ in range(4):
        engine.step()
    assert executor.steps == [
        [(0, 2, 1)],
        [(2, 1, 1), (0, 7, 0)],
        [(3, 1, 1), (7, 7, 0)],
        [(4, 1, 1), (14, 6, 1), (0, 1, 0)],
        [(5, 1, 1), (20, 1, 1), (1, 5, 1)],
    ]


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    engine = Engine(Recorder(n_blocks=10))
    first = Request([1] * 20, with_options(max_tokens=12))
    large, small = Request([2] * 30, GREEDY), Request([3], GREEDY)
    for request in (first, large, small):
        engine.submit(request)
    firsts = []
    while engine.is_busy:
        firsts += [result.request_id for result in engine.step() if result.request_id not in firsts]
    assert firsts == [first.id, large.id, small.id]


def test_guesses_save_steps_only_while_few_run() -> None:
    def steps(n_requests: int, **options: int) -> list[list[tuple[int, int, int]]]:
        executor = Cycle(n_blocks=1000)
        requests = [
            Request([i, 0, 1, 2, 3, 4, 0, 1, 2], with_options(max_tokens=40)) for i in range(n_requests)
        ]
        for done in run(Engine(executor, EngineConfig(**options)), *requests):
            assert done.token_ids == tuple((3 + i) % 5 for i in range(40))
        return executor.steps

    assert len(steps(1, max_guesses=0)) == 40
    one = steps(1)
    assert len(one) < 10
    assert max(n_tokens for step in one[1:] for _, n_tokens, _ in step) == 9
    assert max(n_tokens for step in steps(4)[1:] for _, n_tokens, _ in step) == 3
    assert all(n_tokens == 1 for step in steps(9)[1:] for _, n_tokens, _ in step)


def test_seeds_decide_and_differ_by_default() -> None:
    params = SamplingParams(temperature=2, max_tokens=20)
    engine = Engine(Recorder())
    one, other = run(engine, Request([1], params), Request([1], params))
    assert one.token_ids != other.token_ids
    seeded = dataclasses.replace(params, seed=3)
    one, other = run(engine, Request([1], seeded), Request([1], seeded))
    assert one.token_ids == other.token_ids
    # positions count from the beginning of the prompt: an answer can be taken up again where it stopped
    (rest,) = run(engine, Request([1, *one.token_ids[:7]], dataclasses.replace(seeded, max_tokens=13)))
    assert rest.token_ids == one.token_ids[7:]


def test_scores_a_prompt_in_chunks_of_bounded_rows() -> None:
    executor = Recorder()
    prompt = array("i", [7, 2, 5, 20, 1, 1, 5, 0, 3, 25, 6, 2])
    engine = Engine(executor, EngineConfig(max_logits_bytes=5 * 26 * 4, max_running=1, max_guesses=0))
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=3)
    (done,) = run(engine, Request(prompt, params, prompt_logprobs=True))
    assert executor.steps == [[(0, 5, 5)], [(5, 5, 5)], [(10, 2, 2)]]
    assert done.prompt_logprobs is not None
    assert done.logprobs is not None
    assert [item.token_id for item in done.prompt_logprobs] == list(prompt[1:])
    for i, item in enumerate((*done.prompt_logprobs, *done.logprobs)):
        row_V = executor.logits(prompt[: i + 1]).astype(np.float64)
        exact_V = row_V - np.log(np.exp(row_V).sum())
        assert item.logprob == pytest.approx(exact_V[item.token_id], abs=1e-12)
        assert [token for token, _ in item.top] == np.argsort(-exact_V)[:3].tolist()
    (done,) = run(engine, Request([3], params, prompt_logprobs=True))
    assert done.prompt_logprobs == ()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "broken",
    [
        Request([1, 2, 3], GREEDY),
        Request([1, 2, 3], with_options(temperature=1.0, top_p=0.9, seed=1)),
        Request([1, 2, 3], with_options(logprobs=2, logit_bias={5: -2.0})),
        Request([1, 2, 3], GREEDY, prompt_logprobs=True),
    ],
    ids=["greedy", "drawn", "adjusted", "scored"],
)
def test_logits_that_are_no_numbers_end_one_request_and_no_other(broken: Request, value: float) -> None:
    """As with damaged weights, or an image that overflows: the request that has them is told."""

    class Breaks(Recorder):
        def step(self, batch: Batch) -> NDArray[np.float32]:
            logits_RV, row = super().step(batch).copy(), 0
            for chunk in batch.chunks:
                if chunk.start == 0 and list(chunk.tokens) == [1, 2, 3]:
                    logits_RV[row : row + chunk.n_logits, 4] = value
                row += chunk.n_logits
            return logits_RV

    (alone,) = run(Engine(Breaks(), EngineConfig()), Request([9, 9], GREEDY))
    engine = Engine(Breaks(), EngineConfig())
    for request in (broken, other := Request([9, 9], GREEDY)):
        engine.submit(request)
    results = [result for _ in range(20) for result in engine.step()]
    with pytest.raises(BadFile, match=r"logits after 3 tokens .* weights are damaged"):
        completion(broken, [result for result in results if result.request_id == broken.id])
    assert completion(other, [result for result in results if result.request_id == other.id]) == alone
    assert not engine.is_busy


@pytest.mark.parametrize("options", [{"max_step_tokens": 0}, {"max_running": 0}, {"max_guesses": -1}])
def test_absurd_limits_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(BadValue, match=next(iter(options))):
        EngineConfig(**options)
