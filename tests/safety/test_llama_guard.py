"""Guard models: their categories, how their templates are fed, what their answers mean."""

from __future__ import annotations

from math import log

import pytest
from safety import guards
from text.vocabularies import smollm2

from puna.core import BadValue, TokenLogprob
from puna.safety.llama_guard import Guard, guard_of, is_guard, verdict
from puna.safety.taxonomy import OPENAI, openai_names, slug
from puna.text.chat import render_chat
from puna.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_gguf(smollm2())


def guard(template: str) -> Guard:
    TOKENIZER.chat_template = template
    found = guard_of(TOKENIZER)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("template", "letter", "names", "in_parts"),
    [
        (guards.GUARD_1, "O", guards.O1, False),
        (guards.GUARD_2, "S", guards.S2, False),
        (guards.GUARD_3, "S", guards.S3, False),
        (guards.GUARD_3_1B, "S", guards.S3[:13], True),
    ],
)
def test_codes_mean_what_the_prompt_says(
    template: str, letter: str, names: tuple[str, ...], in_parts: bool
) -> None:
    found = guard(template)
    assert found.categories == {f"{letter}{i + 1}": slug(name) for i, name in enumerate(names)}
    assert found.in_parts == in_parts
    prompt = render_chat(TOKENIZER, [found.turn(" How do I hack a bank? ")])
    assert "User: How do I hack a bank?\n\n<END CONVERSATION>" in prompt


def test_the_same_code_is_another_category_in_another_generation() -> None:
    assert guard(guards.GUARD_2).categories["S5"] == "specialized-advice"
    assert guard(guards.GUARD_3).categories["S5"] == "defamation"


def test_other_models_are_no_guards() -> None:
    TOKENIZER.chat_template = smollm2()["tokenizer.chat_template"]
    assert guard_of(TOKENIZER) is None
    TOKENIZER.chat_template = None
    assert guard_of(TOKENIZER) is None
    assert not is_guard("")


def test_a_template_that_loses_the_text_is_refused() -> None:
    with pytest.raises(BadValue, match="leaves it out"):
        guard(guards.GUARD_3.replace("message['content']", "message['contents']"))
    with pytest.raises(BadValue, match="must list categories"):
        guard("<BEGIN UNSAFE CONTENT CATEGORIES><END UNSAFE CONTENT CATEGORIES>{{ messages[0]['content'] }}")


def test_categories_have_openais_names() -> None:
    """Every category of every generation is either translated or kept under its own name."""
    alone = {"defamation", "specialized-advice", "privacy", "intellectual-property", "elections",
             "code-interpreter-abuse"}  # fmt: skip
    for name in (*guards.O1, *guards.S2, *guards.S3, "Sex-Related Crimes", "Suicide & Self-Harm",
                 "Child Sexual Exploitation"):  # fmt: skip
        translated = openai_names([slug(name)])
        assert bool(translated) != (slug(name) in alone), name
        assert translated <= set(OPENAI)


def scored(found: Guard, safe: float, unsafe: float) -> list[TokenLogprob]:
    """An answer after an empty line: the first place says nothing of either word."""
    s, u = TOKENIZER.encode("safe")[0], TOKENIZER.encode("unsafe")[0]
    ids = found.safe_ids | found.unsafe_ids
    known = dict.fromkeys(ids, -99.0) | {s: log(safe), u: log(unsafe)}
    newline = TokenLogprob(TOKENIZER.encode("\n\n")[0], 0.0, tuple((i, -9.0) for i in ids))
    said = s if safe > unsafe else u
    return [newline, TokenLogprob(said, known[said], tuple(known.items()))]


def test_a_verdict_is_read_behind_empty_lines() -> None:
    found = guard(guards.GUARD_3)
    made = verdict(found, "\n\nunsafe\nS2,S9,S2", scored(found, 0.1, 0.3))
    assert made.categories == tuple(map(slug, (guards.S3[1], guards.S3[8])))
    assert made.score == pytest.approx(0.75)
    made = verdict(found, "\n\nunsafe", scored(found, 0.1, 0.3))  # as Llama Guard 4 has been seen to answer
    assert made.is_unsafe
    assert made.categories == ()
    made = verdict(found, "\n\n\nunsafe\nS2, S9\n", scored(found, 0.1, 0.3))  # held to no grammar
    assert made.categories == tuple(map(slug, (guards.S3[1], guards.S3[8])))
    made = verdict(found, "safe", scored(found, 0.6, 0.2))
    assert not made.is_unsafe
    assert made.categories == ()
    assert made.score == pytest.approx(0.25)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "safer",
        "safe\nS1",
        "not safe",
        "unsafe\nS15",
        "unsafe\nS1 S2",
        "unsafe\nS1,",
        "unsafe S1",
        "Safe",
        "I cannot",
    ],
)
def test_other_answers_are_none(text: str) -> None:
    found = guard(guards.GUARD_3)
    with pytest.raises(BadValue, match="must answer safe"):
        verdict(found, text, scored(found, 0.5, 0.5))
