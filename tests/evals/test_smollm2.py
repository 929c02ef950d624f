"""The default model against what llama.cpp and float32 said of it (tests/golden/make_smollm2.py).

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest

from puna import LLM
from puna.evals.perplexity import WindowConfig, perplexity
from puna.weights import store

FOLDER = Path(golden.__path__[0])
NEAR_TIE = 0.7  # nats; tests/peers/test_same_numbers.py says why


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    if store.find("smollm2") is None:
        pytest.skip("smollm2 is not pulled")
    with LLM("smollm2", context=1024, batch=1, speculate=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "smollm2.json").read_text(encoding="utf-8"))
    return found


def test_perplexity(llm: LLM, expected: dict[str, Any]) -> None:
    """One percent: on 900 tokens the rounding of activations alone moves it by a quarter of that."""
    text = (FOLDER / "english.txt").read_text(encoding="utf-8")
    ids = llm.tokenizer.encode(text, bos=False)
    config = WindowConfig(**expected["windows"])
    found = perplexity(ids, len(text.encode()), llm.score, config, None, lambda what: None)
    print(f"{found.perplexity:.3f}; recorded: {expected['perplexity']}")
    for value in expected["perplexity"].values():
        assert found.perplexity == pytest.approx(value, rel=0.01)


def test_next_tokens_along_llama_cpps_answers(llm: LLM, expected: dict[str, Any]) -> None:
    """97 % of the likeliest tokens are llama.cpp's, the others near-ties; its probabilities are close."""
    answers = expected["answers"]
    scores = llm.score([answer["ids"] for answer in answers], top=1)
    best, errors, margins = [], [], []
    for answer, scored in zip(answers, scores, strict=True):
        tops = [item.top[0] for item in scored[answer["n_prompt"] - 1 :]]
        for (token, logprob), theirs, their_logprob, margin in zip(
            tops, answer["best"], answer["logprob"], answer["float_margin"], strict=True
        ):
            best.append(token == theirs)
            errors.append(logprob - their_logprob)
            if token != theirs:
                margins.append(margin)
    rms = float(np.sqrt(np.mean(np.square(errors))))
    print(f"{np.mean(best):.2%} of {len(best)}, margins {margins}, log-probabilities {rms:.3f} apart")
    assert len(best) >= 400
    assert np.mean(best) >= 0.97
    assert max(margins, default=0) < NEAR_TIE
    assert rms < 0.15
