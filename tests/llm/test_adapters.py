"""Adapters in the Python API: beside each other, loaded and unloaded while others are answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from llm.tiny_llm import write_tiny_llm
from weights.random_adapter import write_random_adapter

from puna import LLM
from puna.core import BadFile, BadValue, Completion, UnknownModel

TEXT = "the other day I went to the market and bought the finest apples of the whole year"
OPTIONS = {"temperature": 0, "max_tokens": 24, "ignore_end": True, "logprobs": 2}


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    with LLM(write_tiny_llm(tmp_path / "tiny.gguf"), threads=2, batch=16) as made:
        for seed in (1, 2, 3):
            write_random_adapter(tmp_path / f"a{seed}", made.config, seed)
        yield made


def same(a: Completion, b: Completion) -> bool:
    return (a.token_ids, a.logprobs) == (b.token_ids, b.logprobs)


def test_several_adapters_at_once_answer_as_each_alone(llm: LLM, tmp_path: Path) -> None:
    alone = [llm.generate(TEXT, **OPTIONS)]
    views = [llm, *(llm.load_adapter(f"a{seed}", tmp_path / f"a{seed}") for seed in (1, 2, 3))]
    alone += [view.generate(TEXT, **OPTIONS) for view in views[1:]]
    assert len({answer.token_ids for answer in alone}) == 4
    answers: dict[int, Completion] = {}

    def ask(i: int) -> None:
        answers[i] = views[i % 4].generate(TEXT, **OPTIONS)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(answers[i], alone[i % 4]) for i in range(12))
    again = views[1].generate(TEXT, **OPTIONS)
    assert again.n_cached > 0  # by the adapter's own blocks
    assert same(again, alone[1])


def test_an_adapter_that_is_unloaded_finishes_what_it_began(llm: LLM, tmp_path: Path) -> None:
    view = llm.load_adapter("a", tmp_path / "a1")
    expected = view.generate(TEXT, temperature=0, max_tokens=200, ignore_end=True)
    stream = iter(view.stream(TEXT, temperature=0, max_tokens=200, ignore_end=True))
    text = next(stream)
    llm.unload_adapter("a")
    with pytest.raises(UnknownModel, match="not loaded any more"):
        view.generate(TEXT)
    with pytest.raises(UnknownModel, match="no adapter 'a' is loaded"):
        llm.with_adapter("a")
    assert text + "".join(stream) == expected.text
    # another one of the same name meets none of its keys and values
    other = llm.load_adapter("a", tmp_path / "a2")
    fresh = other.generate(TEXT, **OPTIONS)
    assert fresh.n_cached == 0
    llm.load_adapter("b", tmp_path / "a2")
    assert same(llm.with_adapter("b").generate(TEXT, **OPTIONS), fresh)


def test_embeddings_are_those_of_the_adapter_whatever_else_is_embedded(llm: LLM, tmp_path: Path) -> None:
    base = llm.embed(TEXT)
    views = [llm.load_adapter(f"a{seed}", tmp_path / f"a{seed}") for seed in (1, 2)]
    alone = [view.embed(TEXT) for view in views]
    assert abs(alone[0] @ alone[1]) < 0.99
    assert abs(alone[0] @ base) < 0.99
    texts = [TEXT, "apples", TEXT + TEXT]
    assert all((view.embed(texts)[0] == row).all() for view, row in zip(views, alone, strict=True))
    assert (llm.embed(texts)[0] == base).all()


def test_guesses_of_a_draft_change_no_answer_of_an_adapter(llm: LLM, tmp_path: Path) -> None:
    expected = llm.load_adapter("a", tmp_path / "a1").generate(TEXT, **OPTIONS)
    with LLM(llm.path, threads=1, batch=16, draft=llm.path) as drafted:
        answer = drafted.load_adapter("a", tmp_path / "a1").generate(TEXT, **OPTIONS)
        assert same(answer, expected)
        assert drafted.stats().proposed_tokens > 0


def test_a_session_comes_back_to_its_adapter_and_to_no_other(llm: LLM, tmp_path: Path) -> None:
    text = TEXT * 3
    view = llm.load_adapter("a", tmp_path / "a1")
    saved = view.save_session(tmp_path / "a.session", text)
    assert len(saved.tokens) >= 64
    expected = view.generate(text, **OPTIONS)
    llm.unload_adapter("a")
    again = llm.load_adapter("other name", tmp_path / "a1")
    fresh = llm.generate(text, **OPTIONS)
    again.load_session(tmp_path / "a.session")
    restored = again.generate(text, **OPTIONS)
    assert restored.n_cached == len(saved.tokens)
    assert same(restored, expected)
    llm.save_session(tmp_path / "base.session", text)
    second = llm.load_adapter("b", tmp_path / "a2")
    for model, file in ((llm, "a"), (second, "a"), (again, "base")):
        with pytest.raises(BadFile, match="saved with other weights"):
            model.load_session(tmp_path / f"{file}.session")
    assert same(llm.generate(text, **OPTIONS), fresh)


def test_what_is_wrong_with_an_adapter_is_said_and_the_model_goes_on(llm: LLM, tmp_path: Path) -> None:
    llm.load_adapter("a", tmp_path / "a1")
    with pytest.raises(BadValue, match="loaded already"):
        llm.load_adapter("a", tmp_path / "a2")
    with pytest.raises(BadFile, match="must be a folder"):
        llm.load_adapter("b", tmp_path / "none")
    with pytest.raises(UnknownModel, match="no adapter 'ab' is loaded; did you mean 'a'"):
        llm.unload_adapter("ab")
    assert [adapter.name for adapter in llm.adapters.all] == ["a"]
    assert llm.chat("Hello", temperature=0, max_tokens=3).finish_reason == "length"


def test_loading_and_unloading_many_times_keeps_nothing(llm: LLM, tmp_path: Path) -> None:
    base = llm.generate(TEXT, **OPTIONS)
    for i in range(30):
        view = llm.load_adapter("a", tmp_path / f"a{1 + i % 3}")
        view.generate(TEXT, temperature=0, max_tokens=2)
        llm.unload_adapter("a")
    executor = llm._engine._engine._executor
    assert executor._adapters._slots == {}
    assert same(llm.generate(TEXT, **OPTIONS), base)
