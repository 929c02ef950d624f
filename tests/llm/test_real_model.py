"""The real model, where it was pulled: it knows what it should, and answers as it promises to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from puna import LLM
from puna.weights import store


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    stored = store.find("smollm2")
    if stored is None or not stored.is_whole():
        pytest.skip("smollm2 is not in the store; run `puna pull smollm2`")
    with LLM("smollm2") as llm:
        yield llm


def test_it_knows_the_capital_of_france(llm: LLM) -> None:
    answer = llm.generate("The capital of France is", temperature=0, max_tokens=8, logprobs=0)
    assert answer.text.startswith(" Paris")
    assert answer.logprobs is not None
    assert answer.logprobs[0].logprob > -1.5
    endings = [" Paris.", " banana."]
    paris, banana = llm.score(["The capital of France is" + ending for ending in endings])
    assert sum(token.logprob for token in paris) > sum(token.logprob for token in banana) + 5


def test_it_ends_its_answers(llm: LLM) -> None:
    answer = llm.chat("Hello!", temperature=0, max_tokens=100)
    assert answer.finish_reason == "stop"
    assert answer.stop == llm.tokenizer.id("<|im_end|>")
    assert "<|" not in answer.text


def test_a_long_conversation_is_computed_once(llm: LLM) -> None:
    messages = [{"role": "user", "content": "I went to the market. " * 100}]
    first = llm.chat(messages, temperature=0, max_tokens=20)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Where did I go?"}]
    second = llm.chat(messages, max_tokens=1)
    assert second.n_prompt > 600
    assert second.n_cached > first.n_prompt - 32
