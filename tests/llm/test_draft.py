"""LLM(draft=…): the same answers, in fewer steps of the large model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm.tiny_llm import write_tiny_llm

from puna import LLM
from puna.core import BadValue, Completion, DoesNotFit, NotPulled, UnknownModel
from puna.engine.draft import DraftModel
from puna.llm import load as loading

TEXTS = ["the other day ", "Hello! " * 30, "a", "one two three one two three one two"]


def bits(answers: list[Completion]) -> list[tuple[Any, ...]]:
    return [(a.token_ids, a.logprobs, a.finish_reason, a.text) for a in answers]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random model over the same vocabulary: smaller, and never of one mind with the tiny one."""
    return write_tiny_llm(tmp_path_factory.mktemp("draft") / "other.gguf", seed=9, n_layers=1, context=256)


@pytest.fixture(scope="module", params=["itself", "another"])
def drafted(request: pytest.FixtureRequest, tiny: Path, other: Path) -> Iterator[tuple[LLM, bool]]:
    is_right = request.param == "itself"
    with LLM(tiny, threads=1, draft=tiny if is_right else other) as llm:
        assert isinstance(llm._engine._engine._proposer, DraftModel)
        yield llm, is_right


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_do_not_change(llm: LLM, drafted: tuple[LLM, bool], temperature: float) -> None:
    options: dict[str, Any] = {"temperature": temperature, "seed": 5, "max_tokens": 40, "logprobs": 2}
    expected = bits(llm.generate(TEXTS, **options))
    model, is_right = drafted
    before = model.stats()
    assert bits(model.generate(TEXTS, **options)) == expected
    alone = [model.generate(text, **options) for text in TEXTS]
    assert bits(alone) == expected
    after = model.stats()
    proposed = after.proposed_tokens - before.proposed_tokens
    accepted = after.accepted_tokens - before.accepted_tokens
    assert proposed > 20
    if is_right:
        assert accepted > 0.95 * proposed


def test_a_conversation_and_its_next_turn(llm: LLM, drafted: tuple[LLM, bool]) -> None:
    messages = [{"role": "user", "content": "Tell me the other thing."}]
    options: dict[str, Any] = {"temperature": 0.5, "seed": 1, "max_tokens": 30}
    for _ in range(3):
        answers = [model.chat(messages, **options) for model in (llm, drafted[0])]
        assert answers[0].token_ids == answers[1].token_ids
        messages += [{"role": "assistant", "content": answers[0].text}, {"role": "user", "content": "Go on."}]


def test_another_vocabulary_is_refused(tiny: Path, tmp_path: Path) -> None:
    more = write_tiny_llm(tmp_path / "more.gguf", control=["<|more|>"])
    with pytest.raises(
        BadValue, match=r"draft: the draft must have the vocabulary .* 262 tokens, .* has 263"
    ):
        LLM(tiny, threads=1, draft=more)
    one, two = (write_tiny_llm(tmp_path / f"{name}.gguf", control=[f"<|{name}|>"]) for name in ("a", "b"))
    with pytest.raises(BadValue, match=r"token 262 is b'<\|a\|>', and it has b'<\|b\|>'"):
        LLM(one, threads=1, draft=two)


def test_what_else_is_wrong_with_a_draft(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValue, match="speculate is off"):
        LLM(tiny, draft=tiny, speculate=False)
    with pytest.raises((UnknownModel, NotPulled)):
        LLM(tiny, draft="no-such-model")
    monkeypatch.setattr(loading.backend, "available", lambda backend: 3_000_000)
    LLM(tiny, threads=1, context=512, batch=1).close()
    with pytest.raises(DoesNotFit, match="tiny with its draft"):
        LLM(tiny, threads=1, context=512, batch=1, draft=tiny)
