"""Moderations by OpenAI's client: a random model is held to a guard's answers, its numbers are checked."""

from __future__ import annotations

import asyncio
from math import exp
from typing import Any

import llama_api_client
import openai
import pytest
from llm.tiny_llm import write_tiny_llm
from safety import guards
from server.conftest import Running, Start

from puna.core import SamplingParams
from puna.safety.classifiers import make
from puna.safety.taxonomy import OPENAI, openai_names, slug
from puna.server.config import ServerConfig
from puna.server.structured import compiled

TEXTS = ["An alpaca.", "I", "Zug", "???", "0" * 40, "the other day", "ÄÖÜ", "x = 1", "Q", "no no no", "~"]


@pytest.fixture(scope="module")
def judge(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    folder = tmp_path_factory.mktemp("guard")
    # a model of two layers looks at the end: with the text there, it says this and that
    template = guards.GUARD_3 + "{{ messages[-1]['content'] }}"
    path = write_tiny_llm(folder / "guard.gguf", template=template, context=2048)
    return start(ServerConfig(port=0), path=path)


def test_texts_are_judged(judge: Running) -> None:
    found = judge.openai().moderations.create(input=TEXTS)
    assert found.model == "tiny"
    assert len(found.results) == len(TEXTS)
    codes = {f"S{i + 1}": slug(name) for i, name in enumerate(guards.S3)}
    for text, result in zip(TEXTS, found.results, strict=True):
        said = answer(judge, text)
        named = {codes[code] for code in said.partition("\n")[2].split(",") if code}
        categories = result.categories.model_dump(by_alias=True)
        assert result.flagged == said.startswith("unsafe")
        assert {name for name, flag in categories.items() if flag} == named | openai_names(named)
        assert set(categories) == {*OPENAI, *codes.values()}
        expected = probability(judge, text)
        assert result.model_extra is not None
        assert result.model_extra["unsafe_score"] == pytest.approx(expected, rel=1e-6)
        scores = result.category_scores.model_dump(by_alias=True)
        assert {name for name, score in scores.items() if score} == {n for n in categories if categories[n]}
    assert {result.flagged for result in found.results} == {True, False}


def answer(judge: Running, text: str | list[dict[str, str]]) -> str:
    """What the model says, greedily, of what a guard may say."""
    pattern = r"[ \n]{0,2}(safe|unsafe\nS([1-9]|1[0-4])(,S([1-9]|1[0-4])){0,13})"
    request = judge.llm.chat_request(text, SamplingParams(temperature=0, max_tokens=200))
    request.grammar = compiled(judge.llm, "regex", pattern).start()
    said: str = judge.llm._engine.stream(request).result().text
    return said.lstrip(" \n")


def probability(judge: Running, text: str) -> float:
    """Of "u" against "s", each scored as the end of a prompt, behind the white space that the model wrote."""
    request = judge.llm.chat_request(text, SamplingParams(temperature=0, max_tokens=3))
    request.grammar = compiled(judge.llm, "regex", r"[ \n]{0,2}(s|u)").start()
    said = judge.llm._engine.stream(request).result().token_ids
    prompt = [*request.prompt, *said[:-1]]
    ids = [judge.llm.tokenizer.encode(letter)[0] for letter in "su"]
    safe, unsafe = (exp(scored[-1].logprob) for scored in judge.llm.score([[*prompt, i] for i in ids]))
    return unsafe / (safe + unsafe)


def test_any_name_of_openais_asks_for_the_guard(judge: Running) -> None:
    client = judge.openai()
    expected = client.moderations.create(input=TEXTS[0]).results
    for model in ("omni-moderation-latest", "text-moderation-stable", "tiny"):
        assert client.moderations.create(input=TEXTS[0], model=model).results == expected
    parts: Any = [{"type": "text", "text": TEXTS[0]}]  # they are one message
    assert client.moderations.create(input=parts).results == expected
    parts.append({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}})
    with pytest.raises(openai.BadRequestError, match="judges texts only"):
        client.moderations.create(input=parts)


def test_another_puna_asks_it_as_a_classifier(judge: Running) -> None:
    results = judge.openai().moderations.create(input=TEXTS).results
    classifier = make(f"http:{judge.url}/v1/moderations#tiny")
    found = asyncio.run(classifier.judge([[("user", text)] for text in TEXTS]))
    assert [one.is_unsafe for one in found] == [result.flagged for result in results]
    for one, result in zip(found, results, strict=True):
        flags = result.categories.model_dump(by_alias=True)
        assert {*one.categories} == {slug(name) for name, flag in flags.items() if flag}
        assert one.score == max(result.category_scores.model_dump(by_alias=True).values())


def test_without_a_guard_the_answer_says_what_to_serve(server: Running) -> None:
    for model in (openai.omit, "omni-moderation-latest"):
        with pytest.raises(openai.NotFoundError, match="moderations need a guard model"):
            server.openai().moderations.create(input="x", model=model)
    with pytest.raises(openai.NotFoundError, match="tiny is no guard model"):
        server.openai().moderations.create(input="x", model="tiny")
    with pytest.raises(openai.NotFoundError, match="there is no model 'big'"):
        server.openai().moderations.create(input="x", model="big")


def test_conversations_of_the_llama_api_are_judged_message_by_message(judge: Running) -> None:
    """Each as the end of what was said so far: by Meta's own client, against the same prompts by hand."""
    said = [(("user", "assistant")[i % 2], text) for i, text in enumerate(TEXTS)]
    messages: Any = [{"role": role, "content": text} for role, text in said]
    codes = {f"S{i + 1}": slug(name) for i, name in enumerate(guards.S3)}
    url = f"{judge.url}/llama/v1"
    with llama_api_client.LlamaAPIClient(base_url=url, api_key="none", max_retries=0) as client:
        for model in ({}, {"model": "Llama-Guard"}, {"model": "tiny"}):
            found = client.moderations.create(messages=messages, **model)  # type: ignore[arg-type]
            assert found.model == "tiny"
            assert len(found.results) == len(said)
            for i, result in enumerate(found.results):
                line = answer(judge, messages[: i + 1])
                named = [codes[code] for code in line.partition("\n")[2].split(",") if code]
                assert result.flagged == line.startswith("unsafe")
                assert sorted(result.flagged_categories) == sorted(set(named))
        assert {result.flagged for result in found.results} == {True, False}
        for wrong in ("system", "assistant"):
            with pytest.raises(llama_api_client.BadRequestError, match=f"must be the user's, found {wrong}"):
                client.moderations.create(messages=[{"role": wrong, "content": "x"}])  # type: ignore[misc, list-item]
        with pytest.raises(llama_api_client.BadRequestError, match="nothing is in number 1"):
            client.moderations.create(messages=[{"role": "user", "content": ""}])
        with pytest.raises(llama_api_client.NotFoundError, match="there is no model 'big'"):
            client.moderations.create(messages=messages, model="big")
    assert not judge.service.calls


@pytest.mark.parametrize("given", ["", [], ["x", ""], ["x"] * 129, 5])
def test_what_is_wrong_is_said(judge: Running, given: Any) -> None:
    reply = judge.post("/v1/moderations", {"input": given})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input")
    assert not judge.service.calls
