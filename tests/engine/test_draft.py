"""A draft model: what it saves, and that it changes nothing, over mock executors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from puna.core import Batch, Completion, Image, PlacedImage, Request, SamplingParams, StepResult, Unsupported
from puna.engine.completion import completion
from puna.engine.config import EngineConfig
from puna.engine.draft import DraftModel
from puna.engine.engine import Engine
from puna.engine.mock import MockExecutor

GREEDY = SamplingParams(temperature=0, max_tokens=40, logprobs=0)
WARM = SamplingParams(temperature=0.9, max_tokens=40, seed=3, logprobs=0)


class Draft(MockExecutor):
    """Keeps what it ran, disagrees with the model at every `wrong`th token, and breaks on demand."""

    def __init__(self, wrong: int = 0, n_blocks: int = 64) -> None:
        super().__init__(32, 256, n_blocks, 4)
        self.wrong, self.steps, self.fails_at = wrong, list[list[tuple[int, int]]](), 0

    def step(self, batch: Batch) -> NDArray[np.float32]:
        self.steps.append([(chunk.start, len(chunk.tokens)) for chunk in batch.chunks])
        if len(self.steps) == self.fails_at:
            raise RuntimeError("out of order")
        logits_RV = super().step(batch)
        ends = [chunk.start + len(chunk.tokens) for chunk in batch.chunks if chunk.n_logits]
        for row, end in enumerate(ends):
            if self.wrong and end % self.wrong == 0:
                logits_RV[row] = np.roll(logits_RV[row], 7)
        return logits_RV


def run(engine: Engine, *requests: Request) -> list[Completion]:
    results: dict[int, list[StepResult]] = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.is_busy:
        for result in engine.step():
            results[result.request_id].append(result)
    return [completion(request, results[request.id]) for request in requests]


def make(draft: MockExecutor | None, max_step_tokens: int = 512, **limits: int) -> Engine:
    config = EngineConfig(max_step_tokens=max_step_tokens, **limits)
    proposer = None if draft is None else DraftModel(draft, max_step_tokens)
    return Engine(MockExecutor(32, 256, 64, 4), config, proposer)


@pytest.mark.parametrize("params", [GREEDY, WARM])
@pytest.mark.parametrize("wrong", [0, 2, 3, 7])
def test_answers_are_the_same_and_steps_fewer(params: SamplingParams, wrong: int) -> None:
    prompts = [[5, 9, 1, 30, 2], [7, 7, 8], [20] * 33]
    requests = [Request(prompt, params) for prompt in prompts]
    plain = make(None, max_guesses=0)
    expected = [run(plain, Request(prompt, params))[0] for prompt in prompts]
    engine = make(Draft(wrong))
    found = run(engine, *requests)
    for one, other in zip(found, expected, strict=True):
        assert (one.token_ids, one.logprobs, one.finish_reason) == (
            other.token_ids,
            other.logprobs,
            other.finish_reason,
        )
    stats = engine.stats()
    if wrong != 2:
        assert stats.accepted_tokens > 40
        assert stats.steps < 60
    if not wrong:
        assert stats.accepted_tokens == stats.proposed_tokens


def test_a_right_draft_computes_each_token_once() -> None:
    draft = Draft()
    engine = make(draft)
    (answer,) = run(engine, Request([1, 2, 3], GREEDY))
    starts = [start + i for step in draft.steps for start, n in step for i in range(n)]
    assert sorted(starts) == sorted(set(starts))
    assert max(starts) <= 3 + len(answer.token_ids)
    assert engine._proposer._blocks.n_free == 64  # type: ignore[attr-defined]
    assert not engine._proposer._shadows  # type: ignore[attr-defined]


def test_a_long_prompt_is_caught_up_with_over_several_steps() -> None:
    draft = Draft()
    engine = make(draft, max_step_tokens=16)
    (answer,) = run(engine, Request([i % 32 for i in range(100)], GREEDY))
    assert max(n for step in draft.steps for _, n in step) == 16
    assert answer.token_ids == run(make(None), Request([i % 32 for i in range(100)], GREEDY))[0].token_ids
    assert engine.stats().accepted_tokens > 10


def test_the_next_turn_finds_the_drafts_cache() -> None:
    draft = Draft()
    engine = make(draft)
    prompt = [i % 32 for i in range(60)]
    (answer,) = run(engine, Request(prompt, GREEDY))
    draft.steps.clear()
    run(engine, Request([*prompt, *answer.token_ids, 4, 5], GREEDY))
    assert draft.steps[0][0][0] >= 96


def test_a_cache_too_small_for_all_serves_some() -> None:
    requests = [Request([i] * 30, GREEDY) for i in range(4)]
    engine = make(Draft(n_blocks=20))  # 80 positions
    found = run(engine, *requests)
    for request, answer in zip(requests, found, strict=True):
        assert answer.token_ids == run(make(None), Request(request.prompt, GREEDY))[0].token_ids
    assert engine.stats().accepted_tokens > 0


def test_a_draft_that_breaks_costs_no_answer() -> None:
    draft = Draft()
    draft.fails_at = 3
    engine = make(draft)
    (answer,) = run(engine, Request([1, 2, 3], GREEDY))
    assert answer.token_ids == run(make(None), Request([1, 2, 3], GREEDY))[0].token_ids
    assert draft.is_closed
    assert len(draft.steps) == 3
    engine.close()


def test_pictures_are_not_drafted() -> None:
    draft = Draft()
    image = Image(np.zeros((1, 3, 2, 2), np.float32), 1, 1, b"d")
    run(make(draft), Request([1, 2, 3], GREEDY, images=[PlacedImage(image, [1])]))
    assert not draft.steps


def test_chunked_attention_is_refused() -> None:
    with pytest.raises(Unsupported, match="cannot be the draft"):
        DraftModel(MockExecutor(n_local_blocks=8, local_window=8), 16)


def test_closing_closes_both() -> None:
    draft = Draft()
    engine = make(draft)
    engine.close()
    assert draft.is_closed
