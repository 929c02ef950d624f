"""The Python API on a whole tiny model: what it promises, and what it refuses."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
from llm.tiny_llm import until_idle, write_tiny_llm

import puna.llm.load as loading
from puna import LLM, SamplingParams
from puna.core import (
    BadInput,
    BadValue,
    DoesNotFit,
    EngineClosed,
    NotPulled,
    PromptTooLong,
    PunaError,
    UnknownModel,
    UnknownOption,
    Unsupported,
)
from puna.llm import DEFAULT_PARAMS, LLMConfig, backend
from puna.llm.backend import cpu_target
from puna.llm.config import CACHE_TYPES
from puna.runtime import native
from puna.runtime.cpu import TILES, cpu_info

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def engine_threads() -> int:
    return sum(thread.name == "puna-engine" for thread in threading.enumerate())


def test_a_batch_says_what_its_prompts_say_alone(llm: LLM) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "seed": 5, "logprobs": 2, "temperature": 1}
    prompts = ["the cat", "x", "Once upon a time there was"]
    together = llm.generate(prompts, **options)
    assert together == [llm.generate(prompt, **options) for prompt in prompts]
    ids = [llm.tokenizer.encode(prompt) for prompt in prompts]
    assert llm.generate(ids, **options) == together
    assert [len(completion.token_ids) for completion in together] == [12] * 3


def test_seeds(tiny: Path, llm: LLM) -> None:
    def sample(llm: LLM, **options: Any) -> list[tuple[int, ...]]:
        return [c.token_ids for c in llm.generate(["a", "a", "a"], max_tokens=16, temperature=2, **options)]

    assert len(set(sample(llm))) == 3
    assert len(set(sample(llm, seed=1))) == 1
    with LLM(tiny, seed=1, threads=1) as one, LLM(tiny, seed=1, threads=1) as other:
        assert sample(one) == sample(other)
        assert len(set(sample(one))) == 3


def test_params_and_options(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=4)
    assert llm.generate("a", greedy) == llm.generate("a", temperature=0, max_tokens=4)
    assert len(llm.generate("a", greedy, max_tokens=7).token_ids) == 7
    assert llm.stream("a").request.params.temperature == DEFAULT_PARAMS.temperature
    assert llm.stream("a", stop="xy", stop_ids=5).request.params.stop == ("xy",)
    assert llm.stream("a", stop=["x", "y"]).request.params.stop == ("x", "y")


def test_an_answer_cannot_be_longer_than_it_may(llm: LLM) -> None:
    with pytest.raises(BadValue, match=r"min_tokens must be at most max_tokens \(4\), got 5"):
        llm.generate("a", min_tokens=5, max_tokens=4)
    assert len(llm.generate("a", min_tokens=4, max_tokens=4).token_ids) == 4


def test_a_stream_is_its_result_in_pieces(llm: LLM) -> None:
    answer = llm.stream(MESSAGES, max_tokens=40, temperature=0, ignore_end=True)
    pieces = list(answer)
    assert "" not in pieces
    assert len(pieces) > 1
    result = answer.result()
    assert (
        "".join(pieces)
        == result.text
        == llm.chat(MESSAGES, max_tokens=40, temperature=0, ignore_end=True).text
    )
    assert (result.finish_reason, len(result.token_ids)) == ("length", 40)
    timing = answer.timing
    assert (timing.n_computed + result.n_cached, timing.n_tokens) == (result.n_prompt, 40)
    assert timing.prompt_s > 0
    assert timing.decode_s > 0


def test_who_stops_reading_cancels(llm: LLM) -> None:
    for _ in llm.stream("a", ignore_end=True):
        break
    until_idle(llm)
    with llm.stream("a", ignore_end=True) as answer:
        first = next(answer)
    result = answer.result()
    assert result.finish_reason == "cancelled"
    assert result.text.startswith(first)
    until_idle(llm)


def test_stop_strings_are_not_in_the_text(llm: LLM) -> None:
    text = llm.generate("a", temperature=0, max_tokens=30).text
    stop = text[10:12]
    stopped = llm.generate("a", temperature=0, max_tokens=30, stop=stop)
    assert (stopped.text, stopped.stop) == (text[: text.index(stop)], stop)


def test_chat_follows_the_template_and_nothing_else(llm: LLM) -> None:
    result = llm.chat(MESSAGES, max_tokens=1)
    rendered = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert result.n_prompt == len(llm.tokenizer.encode(rendered, special=True))
    forged = llm.stream("<|im_end|>").request.prompt
    assert not set(forged) & llm.tokenizer.special_ids
    assert set(llm.stream("<|im_end|>", special=True).request.prompt) & llm.tokenizer.special_ids
    assert llm.chat("Why?", max_tokens=3, seed=1) == llm.chat(MESSAGES[1:], max_tokens=3, seed=1)


def test_the_next_turn_computes_new_tokens_only(llm: LLM) -> None:
    first = llm.stream([{"role": "user", "content": "x" * 200}], max_tokens=40, temperature=0).result()
    messages = [
        {"role": "user", "content": "x" * 200},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "more"},
    ]
    assert llm.chat(messages, max_tokens=1).n_cached >= first.n_prompt - native.BLOCK_TOKENS


def test_scores_are_the_log_probabilities_of_generating(llm: LLM) -> None:
    prompt = llm.tokenizer.encode("the cat")
    made = llm.generate(prompt, temperature=0, max_tokens=20, logprobs=2, ignore_end=True)
    assert made.logprobs is not None
    scores = llm.score([*prompt, *made.token_ids], top=2)
    assert len(scores) == len(prompt) + 19
    assert scores[-20:] == made.logprobs
    assert llm.score(["the cat", "x"]) == [llm.score("the cat"), llm.score("x")]
    assert llm.score("x") == ()  # nothing precedes it


def test_async_answers_are_the_same(llm: LLM) -> None:
    llm.chat(MESSAGES, max_tokens=1)  # all of them find it in the cache

    async def ask() -> tuple[list[Any], list[str], str]:
        options: dict[str, Any] = {"max_tokens": 10, "seed": 2}
        together = await asyncio.gather(
            llm.agenerate("a", **options), llm.achat(MESSAGES, **options), llm.agenerate("b", **options)
        )
        answer = llm.astream(MESSAGES, **options)
        pieces = [text async for text in answer]
        return together, pieces, (await answer.result()).text

    together, pieces, text = asyncio.run(ask())
    assert together == [
        llm.generate("a", max_tokens=10, seed=2),
        llm.chat(MESSAGES, max_tokens=10, seed=2),
        llm.generate("b", max_tokens=10, seed=2),
    ]
    assert "".join(pieces) == text == together[1].text


def test_a_cancelled_task_cancels_its_request(llm: LLM) -> None:
    async def ask() -> None:
        task = asyncio.create_task(llm.agenerate("a", ignore_end=True))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    until_idle(llm)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (
            {"temprature": 1},
            UnknownOption,
            "unknown sampling option 'temprature'; did you mean 'temper",
        ),
        ({"temperature": -1}, BadValue, "temperature must be from 0 to 100, got -1"),
        ({"temperature": "hot"}, BadValue, "temperature must be a number, got 'hot'"),
        ({"max_tokens": 2.5}, BadValue, "max_tokens must be a whole number or None, got 2.5"),
        ({"max_tokens": True}, BadValue, "max_tokens must be a whole number or None, got True"),
        ({"ignore_end": "no"}, BadValue, "ignore_end must be True or False, got 'no'"),
        ({"repetition_penalty": 1e-300}, BadValue, "repetition_penalty must be from 0.01 to 100"),
        ({"logit_bias": {1: 1e300}}, BadValue, "logit_bias must be from -1e6 to 1e6"),
        ({"logit_bias": {1: "x"}}, BadValue, "logit_bias must add numbers"),
        ({"stop_ids": ["x"]}, BadValue, "stop_ids must be of token ids"),
        ({"seed": "x"}, BadValue, "seed must be a whole number or None, got 'x'"),
        ({"stop": 3.5}, BadValue, "stop must be a tuple, got 3.5"),
        ({"stop": [b"x"]}, BadValue, "stop must be of texts, got"),
        ({"stop_ids": [10**6]}, BadValue, "stop_ids must be token ids"),
        ({"logit_bias": {"a": 1.0}}, BadValue, "logit_bias must be of token ids, whole numbers, got"),
    ],
)
def test_bad_options(llm: LLM, options: dict[str, Any], error: type[PunaError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        llm.generate("a", **options)


@pytest.mark.parametrize("prompt", [None, 123, b"abc", ("a", "b"), ["a", 3], [1.5], [1, None], {"a": 1}])
def test_a_prompt_of_the_wrong_type_is_its_own_affair(llm: LLM, prompt: Any) -> None:
    other = llm.stream("the", max_tokens=40, ignore_end=True, temperature=0)
    with pytest.raises(BadValue, match="prompt must be a text or a list of token ids"):
        llm.generate(prompt)
    assert len("".join(other)) > 0
    assert llm.generate("the", max_tokens=2).text is not None


@pytest.mark.parametrize(
    ("messages", "tools"), [(None, None), (7, None), ([{"role": "user", "content": "a"}], 5)]
)
def test_messages_and_tools_of_the_wrong_type(llm: LLM, messages: Any, tools: Any) -> None:
    with pytest.raises(BadValue, match=r"(messages|tools) must be a list of mappings"):
        llm.chat(messages, tools=tools)
    with pytest.raises(BadValue, match="logprobs must be a whole number"):
        llm.score("a", top="x")  # type: ignore[call-overload]


def test_bad_prompts(llm: LLM) -> None:
    with pytest.raises(PromptTooLong, match="the prompt has 600 tokens, but the context holds 512"):
        llm.generate("x" * 600)
    with pytest.raises(PromptTooLong, match="prompt 1: the prompt has 600 tokens"):
        llm.generate(["x", "y" * 600])
    until_idle(llm)
    with pytest.raises(BadValue, match="the prompt must have at least one token"):
        llm.generate("")
    with pytest.raises(BadInput, match="tools need messages"):
        llm.stream("x", tools=[{}])
    with pytest.raises(BadInput, match="message 0 must be"):
        llm.chat([{"content": "x"}])
    assert llm.generate("x" * 512, max_tokens=5).finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"contxt": 5}, UnknownOption, "LLM has no option 'contxt'; did you mean 'context'?"),
        ({"context": 0}, BadValue, "context must be a whole number from 1 to 2,147,483,647, got 0"),
        (
            {"context": 513},
            BadValue,
            "context must be at most the 512 tokens that tiny was made for",
        ),
        ({"threads": -1}, BadValue, "threads must be a whole number"),
        ({"batch": 1.5}, BadValue, "batch must be a whole number"),
        ({"threads": True}, BadValue, "threads must be a whole number"),
        ({"seed": 1.5}, BadValue, "seed must be a whole number, got 1.5"),
        ({"speculate": "no"}, BadValue, "speculate must be True or False, got 'no'"),
        ({"cache_type": "q8"}, BadValue, "cache_type must be one of bf16, f16, f32, q8_0, got 'q8'"),
    ],
)
def test_bad_loading_options(
    tiny: Path, options: dict[str, Any], error: type[PunaError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        LLM(tiny, **options)


def test_bad_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    with pytest.raises(NotPulled, match="run `puna pull smollm2`"):
        LLM("smollm2")
    with pytest.raises(UnknownModel, match="did you mean 'smollm2'"):
        LLM("smolm2")
    # the tokenizer is refused while the weights are being packed
    path = write_tiny_llm(tmp_path / "strange.gguf", pre="strange")
    with pytest.raises(Unsupported, match="'strange'"):
        LLM(path)


def test_without_a_template_the_format_of_the_vocabulary_is_built(tmp_path: Path, llm: LLM) -> None:
    with LLM(write_tiny_llm(tmp_path / "plain.gguf", template=None), threads=1) as plain:
        options = {"temperature": 0, "max_tokens": 5}
        assert plain.chat("Hi", **options).text == llm.chat("Hi", **options).text


@pytest.mark.parametrize("prefer", ["latency", "throughput"])
def test_a_crowd_changes_no_number_whatever_is_preferred(tiny: Path, prefer: Any) -> None:
    options: Any = {"max_tokens": 6, "temperature": 0, "logprobs": 2}
    with LLM(tiny, prefer=prefer) as llm:
        crowd = llm.generate([f"Number {i} is" for i in range(40)], **options)
        for i in (0, 17, 39):
            alone = llm.generate(f"Number {i} is", **options)
            assert (alone.text, alone.logprobs) == (crowd[i].text, crowd[i].logprobs)


def test_tiles_are_for_those_who_prefer_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUNA_CPU", raising=False)
    tiles = TILES if TILES in cpu_info()["available"] else ""
    assert (cpu_target("latency"), cpu_target("throughput")) == ("", tiles)
    assert cpu_info()["target"] != TILES
    monkeypatch.setenv("PUNA_CPU", "scalar")
    assert cpu_target("throughput") == "scalar"


def test_settings_of_the_environment(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_CPU", "avx1024")
    with pytest.raises(BadValue, match=r"the CPU target of this machine must be one of .*got 'avx1024'"):
        LLM(tiny)
    monkeypatch.setenv("PUNA_CPU", "scalar")
    monkeypatch.setenv("PUNA_THREADS", "3")
    with LLM(tiny) as llm:
        assert llm.threads == 3
    for text in (
        "many",
        "0",
        "-1",
        "100000",
        "1" * 5000,
    ):  # more threads than the system has room for kill it
        monkeypatch.setenv("PUNA_THREADS", text)
        with pytest.raises(BadValue, match=r"PUNA_THREADS must be a whole number from 1 to \d+"):
            LLM(tiny)
    with pytest.raises(BadValue, match=r"threads must be a whole number from 1 to \d+, got 900"):
        LLM(tiny, threads=900)
    monkeypatch.setenv("PUNA_THREADS", "many")
    with pytest.raises(BadValue, match="PUNA_THREADS"):
        LLM(tiny)


def test_what_does_not_fit_is_refused_before_it_is_allocated(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*args: object, **options: object) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(backend, "available_bytes", lambda: 10_000_000)
    monkeypatch.setattr(native, "_pack_all", allocate)
    with pytest.raises(
        DoesNotFit, match="tiny with a context of 512 tokens for each of 4000 sequences needs"
    ):
        LLM(tiny, context=512, batch=4000)


def test_context_and_batch(tiny: Path) -> None:
    with LLM(tiny) as llm:
        assert (llm.context, llm.cache_tokens) == (512, 4096)
    with LLM(tiny, context=100, batch=2) as llm:
        assert (llm.context, llm.cache_tokens) == (100, 256)
        with pytest.raises(PromptTooLong, match="the context holds 100"):
            llm.generate("x" * 101)
        assert len(llm.generate("x" * 60, ignore_end=True, temperature=0).token_ids) == 40


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_every_kind_of_cache(tiny: Path, cache_type: Any) -> None:
    with LLM(tiny, cache_type=cache_type, speculate=False) as llm:
        assert len(llm.generate("x" * 40, max_tokens=5, ignore_end=True).token_ids) == 5


def test_the_kinds_of_cache_are_the_executors() -> None:
    assert set(CACHE_TYPES) == set(native.CACHE_TYPES)
    assert LLMConfig().cache_type == "bf16"


def test_closing(tiny: Path) -> None:
    before = engine_threads()
    with LLM(tiny) as llm:
        assert engine_threads() == before + 1
    assert engine_threads() == before
    llm.close()
    with pytest.raises(EngineClosed, match="the engine is closed"):
        llm.generate("x")


def test_an_llm_that_is_forgotten_closes(tiny: Path) -> None:
    before = engine_threads()
    answer = LLM(tiny, threads=1).stream("x", max_tokens=300, ignore_end=True)
    assert len(answer.result().token_ids) == 300  # an answer keeps its LLM alive
    del answer
    gc.collect()
    assert engine_threads() == before


def test_progress(tiny: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with LLM(tiny, progress=lambda *step: seen.append(step)):
        pass
    assert {what for what, _, _ in seen} == {"loading"}
    assert seen == sorted(seen, key=lambda step: step[1])


def test_an_interrupt_while_loading_ends_the_loading(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(metadata: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "_text_side", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LLM(tiny)
    assert not any(thread.name.startswith("puna-load") for thread in threading.enumerate())
