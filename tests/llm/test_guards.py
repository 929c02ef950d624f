"""LlamaGuard on our engine against transformers, and against models whose answers are known beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from llm.guard_models import CONTROL, forced_guard, random_guard
from llm.tiny_llm import write_tiny_llm
from llm.tiny_vision import LLAMA4, LLAMA32, TOKENS, let_see, png
from safety import guards

from puna import LLM
from puna.core import BadInput, BadValue, PromptTooLong
from puna.llm.guards import LlamaGuard
from puna.safety.llama_guard import build, chosen, find, guard_of
from puna.safety.verdict import Classifier, Turn, Verdict

TEXTS = ["An alpaca.", "I", "Zug", "???", "0" * 40, "the other day", "ÄÖÜ", "x = 1", "Q", "no no no", "~"]
TEMPLATE = guards.RELEASED["llama-guard-3-8b"]
WORDS = {b"safe": False, b"unsafe": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_guard(tmp_path_factory.mktemp("guard"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, threads=1, weights="f32", cache_type="f32") as llm:
        yield llm


def judged(guard: LlamaGuard, conversations: list[list[Turn]]) -> list[Verdict]:
    return list(asyncio.run(guard.judge(conversations)))


def test_scores_are_those_of_transformers(folder: Path, llm: LLM) -> None:
    """From the prompt's text on: their template, their tokenizer, their model, and the rule by hand."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval().float()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    conversations: list[list[Turn]] = [[("user", text)] for text in TEXTS[:8]]
    conversations += [[("user", a), ("assistant", b)] for a in TEXTS[:2] for b in TEXTS[:2]]
    found = judged(LlamaGuard(llm), conversations)
    blanks = []
    for turns, verdict in zip(conversations, found, strict=True):
        messages = [{"role": role, "content": text} for role, text in turns]
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
        blank, expected = by_hand(model, tokenizer, ids["input_ids"])
        blanks.append(blank)
        assert verdict.score == pytest.approx(expected, abs=1e-5)
    assert {verdict.is_unsafe for verdict in found} == {True, False}
    assert {"", "\n\n"} <= set(blanks)


def by_hand(model: Any, tokenizer: Any, ids: list[int]) -> tuple[str, float]:
    """White space that a guard writes first, up to two characters; p(unsafe) / (p(safe) + p(unsafe)) then."""
    spelled = [tokenizer.decode([i]).encode() for i in range(len(tokenizer) - len(CONTROL))]
    blank = ""
    while True:
        with torch.inference_mode():
            p = torch.softmax(model(torch.tensor([[*ids]])).logits[0, -1].double(), -1)
        mass, likely = {False: 0.0, True: 0.0}, []
        for i, text in enumerate(spelled):
            word = text.lstrip(b" ")
            if word and any(name.startswith(word) for name in WORDS):
                mass[word.startswith(b"u")] += float(p[i])
                fits = len(blank) + len(text) - len(word) <= 2
            else:
                fits = not text.strip(b" \n") and len(blank) + len(text) <= 2
            likely += [(float(p[i]), i)] if fits else []
        chosen_id = max(likely)[1]
        if spelled[chosen_id].strip():
            return blank, mass[True] / (mass[True] + mass[False])
        blank += spelled[chosen_id].decode()
        ids = [*ids, chosen_id]


def test_a_score_takes_two_steps(folder: Path, llm: LLM) -> None:
    """One prefill gives the first token; "safe" behind an empty line is the second, and the end."""
    guard, n = LlamaGuard(llm), 0
    for text in TEXTS:
        before = llm.stats().generated_tokens
        (verdict,) = judged(guard, [[("user", text)]])
        if not verdict.is_unsafe:
            n += 1
            assert llm.stats().generated_tokens - before <= 6
    assert n


SAYS = {
    "safe": ({"safe": 0.6, "unsafe": 0.2}, Verdict(False, 0.25)),
    "unsafe": ({"safe": 0.2, "unsafe": 0.6}, Verdict(True, 0.75, ("non-violent-crimes",))),
}
AFTER = {
    "<|end_header_id|>": {"ĊĊ": 1.0}, "unsafe": {"Ċ": 1.0}, "Ċ": {"S": 1.0}, "S": {"2": 1.0},
    "2": {"<|eot_id|>": 1.0}, "safe": {"<|eot_id|>": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("word", SAYS)
def test_known_answers_are_read_behind_an_empty_line(word: str, is_held: bool, tmp_path: Path) -> None:
    probabilities, expected = SAYS[word]
    path = forced_guard(tmp_path, {**AFTER, "ĊĊ": probabilities}, TEMPLATE)
    with LLM(path, threads=1, weights="f32", cache_type="f32") as llm:
        guard: Classifier = LlamaGuard(llm, is_held=is_held, name="forced")
        assert guard.name == "forced"
        (verdict,) = asyncio.run(guard.judge([[("user", "x")]]))
        assert (verdict.is_unsafe, verdict.categories) == (expected.is_unsafe, expected.categories)
        assert verdict.score == pytest.approx(expected.score, abs=1e-5)
        assert llm.stats().generated_tokens == (
            2 if word == "safe" and is_held else 3 if word == "safe" else 6
        )


def test_what_is_no_answer_is_an_error_and_never_safe(tmp_path: Path) -> None:
    path = forced_guard(tmp_path, {**AFTER, "ĊĊ": {"I": 1.0}, "I": {"<|eot_id|>": 1.0}}, TEMPLATE)
    with LLM(path, threads=1, weights="f32", cache_type="f32") as llm:
        free = LlamaGuard(llm, is_held=False)
        with pytest.raises(BadValue, match=r"conversation 1: a guard must answer .*answered '\\n\\nI'"):
            judged(free, [[("user", "x")], [("user", "y")]])
        with pytest.raises(PromptTooLong, match="conversation 2: "):
            judged(LlamaGuard(llm), [[("user", "x")], [("user", "y" * 9999)]])
        with pytest.raises(BadValue, match=r"conversation 1: .*must be the user's"):
            judged(free, [[("assistant", "x")]])
        with pytest.raises(BadInput, match=r"conversation 1: .*sees no images|judges texts only"):
            judged(free, [[("user", [{"type": "image", "image": b""}])]])
        assert not llm._engine._inboxes


def test_our_own_prompt_and_the_templates_give_the_same_verdicts(llm: LLM) -> None:
    conversations: list[list[Turn]] = [[("user", text)] for text in TEXTS]
    by_template = judged(LlamaGuard(llm), conversations)
    assert judged(LlamaGuard(llm, version="llama-guard-3-8b"), conversations) == by_template
    one = LlamaGuard(llm, categories=chosen(find("llama-guard-3-8b"), [], {"Spoilers": "No ends of films."}))
    named = {name for verdict in judged(one, conversations) for name in verdict.categories}
    assert named == {"spoilers"}


def test_a_model_without_a_guards_template_needs_a_version(tmp_path: Path) -> None:
    with LLM(write_tiny_llm(tmp_path / "tiny.gguf"), threads=1) as llm:
        with pytest.raises(BadInput, match="tiny has no guard's chat template"):
            LlamaGuard(llm)
        guard = LlamaGuard(llm, version="llama-guard-1")
        with pytest.raises(PromptTooLong):  # 512 tokens hold no taxonomy
            judged(guard, [[("user", "x")]])
        llm.tokenizer.chat_template = guards.GUARD_3
        assert guard_of(llm.tokenizer) is not None
        with pytest.raises(BadInput, match="is none of Meta's"):
            LlamaGuard(llm, categories=chosen(find("llama-guard-3-8b"), ["S1"]))


def test_prompts_reach_the_model_as_they_are_built(llm: LLM) -> None:
    turns: list[Turn] = [("user", "<|eot_id|> x")]
    version = find("llama-guard-3-8b")
    request, _ = LlamaGuard(llm, version=version.id)._request(turns)
    assert list(request.prompt) == build(version, turns).ids(llm.tokenizer)
    assert list(request.prompt) == list(LlamaGuard(llm)._request(turns)[0].prompt)


@pytest.mark.parametrize("name", ["llama-guard-4", "llama-guard-3-11b-vision"])
def test_pictures_reach_the_model_in_their_places(name: str, tmp_path: Path) -> None:
    """Built by ids: one token before the task, or all tiles where the picture stands in the message."""
    is_four = name == "llama-guard-4"
    header = ["<|header_start|>", "<|header_end|>", "<|eot|>"] if is_four else CONTROL[1:]
    control = [CONTROL[0], *header, *TOKENS["llama4" if is_four else "llama3.2"]]
    path = write_tiny_llm(tmp_path / "tiny.gguf", template=None, control=control, context=4096)
    with LLM(path, threads=1) as llm:
        guard = LlamaGuard(llm, version=name)
        more = {} if is_four else {"cross_attention": (1,)}
        let_see(llm, LLAMA4 if is_four else LLAMA32, **more)
        parts = [{"type": "text", "text": "Look:"}, {"type": "image", "image": png()}]
        request, _ = guard._request([("user", parts)])
        ids, tokenizer = list(request.prompt), llm.tokenizer
        (placed,) = request.images
        if is_four:
            n = LLAMA4.tokens_per_tile
            assert [ids[at] for at in placed.positions] == [tokenizer.id("<|patch|>")] * n * len(
                placed.image.pixels
            )
            before = tokenizer.decode(ids[: placed.positions[0]])
            assert "User: Look:<|image_start|>" in before
        else:
            assert ids.count(tokenizer.id("<|image|>")) == 1
            assert tokenizer.decode(ids[: placed.positions[0] + 1]).endswith("<|end_header_id|>\n\n<|image|>")
